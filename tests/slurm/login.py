"""What a user has on a test cluster: its login node, the profiles of it, and what may befall a run there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.tracking import link_pickle
from tests.scenario import Terminal, Training

from .cluster import SlurmCluster

PROFILES = Path(__file__).parent.parent / "profiles"
SUCCESSOR = str(PROFILES / "leonardo_test.yaml")
REQUEUE = str(PROFILES / "leonardo_requeue.yaml")
SPOT = str(PROFILES / "leonardo_spot.yaml")
TWO_NODES = ("--set", "resources.nodes=2", "--set", "resources.gpus_per_node=1")


class LoginNode(Terminal):
    """A terminal whose commands reach the test cluster; the index of runs is the terminal's."""

    def __init__(self, base: Terminal, cluster: SlurmCluster) -> None:
        super().__init__(base.folder, {**base.environment, "SLURM_CONF": str(cluster.conf)})


def run_ids(run: Training, kind: str) -> list[str]:
    """Return the job ids of a run's events of a kind."""
    return [event["job_id"] for event in run.events(kind)]


def nodes_of(cluster: SlurmCluster, job_id: str) -> str:
    """Return the nodes of a job, as Slurm writes them."""
    return cluster.run("squeue", "-h", "-j", job_id, "-o", "%N").stdout.strip()


def set_time_limit(cluster: SlurmCluster, job_id: str, minutes: int) -> None:
    """Change a job's time limit, counted from its start, as an administrator can."""
    answer = cluster.run("scontrol", "update", f"jobid={job_id}", f"timelimit={minutes}")
    assert answer.returncode == 0, answer.stderr


def preempt(run: Training, cluster: SlurmCluster, step: int = 25) -> float:
    """Let an urgent job take the run's nodes at a step, and wait until the attempt has ended.

    The ranks stand still until Slurm's notice, which brings them a SIGCONT, or until the supervisor has theirs.

    Returns:
        When the urgent job was submitted.
    """
    run.wait_for_step(step)
    run.freeze()
    attempts, began = len(run.events("ended")), time.time()
    urgent = cluster.urgent_job(nodes=nodes_of(cluster, run.events("started")[-1]["job_id"]), seconds=5)
    if cluster.options.send_user_signal:
        run.wait_for_event("warned")
        run.thaw()
    run.wait_for_event("ended", count=attempts + 1)
    cluster.wait_for(lambda: cluster.job_state(urgent) in ("RUNNING", "COMPLETED"), "the urgent job's turn")
    return began


def freeze_at_notice(run: Training, urgent_job: Callable[[], object]) -> float:
    """Let an urgent job come whose notice brings the ranks a SIGCONT, and stop them again before they can save.

    Returns:
        When the urgent job was submitted.
    """
    run.freeze()
    pids, began = run.rank_pids(), time.time()
    urgent_job()
    while not all(map(_is_running, pids)):
        time.sleep(0.001)
    run.freeze()
    assert not run.events("ended")
    return began


def _is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "T"


def second_job(run: Training, cluster: SlurmCluster, event: str, **facts: Any) -> str:
    """Queue another job for a run, held, as if it were submitted by one who knew of no other; return its id."""
    job_id = cluster.submit("--hold", str(run.folder / "job.sbatch"))
    folder = RunFolder(run.folder)
    link_pickle(folder, folder.submitit_dir / f"{run.job_id}_submitted.pkl", job_id)
    folder.record(event, job_id=job_id, **facts)  # type: ignore[arg-type]
    return job_id
