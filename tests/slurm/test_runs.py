"""The main job on a real Slurm: queued, run, preempted, limited, killed, cancelled, and ended in the same bits."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.tracking import link_pickle
from tests.scenario import Terminal, Training, assert_same_training, wait_until

from .cluster import SlurmCluster
from .conftest import require_cgroup

PROFILES = Path(__file__).parent.parent / "profiles"
SUCCESSOR = str(PROFILES / "leonardo_test.yaml")
REQUEUE = str(PROFILES / "leonardo_requeue.yaml")
TWO_NODES = ("--set", "resources.nodes=2", "--set", "resources.gpus_per_node=1")
TWO_BY_TWO = ("--set", "resources.nodes=2", "--set", "resources.gpus_per_node=2")


class LoginNode(Terminal):
    """A terminal whose commands reach the test cluster; the index of runs is the terminal's."""

    def __init__(self, base: Terminal, cluster: SlurmCluster) -> None:
        super().__init__(base.folder, {**base.environment, "SLURM_CONF": str(cluster.conf)})


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """A cluster without accounting: everything must work without sacct."""
    with SlurmCluster(accounting=False, grace_time_s=60) as running:
        yield running


@pytest.fixture(scope="module")
def login(terminal: Terminal, cluster: SlurmCluster) -> LoginNode:
    """The cluster's login node."""
    return LoginNode(terminal, cluster)


def run_ids(run: Training, kind: str) -> list[str]:
    """Return the job ids of a run's events of a kind."""
    return [event["job_id"] for event in run.events(kind)]


def set_time_limit(cluster: SlurmCluster, job_id: str, minutes: int) -> None:
    """Change a job's time limit, counted from its start, as an administrator can."""
    answer = cluster.run("scontrol", "update", f"jobid={job_id}", f"timelimit={minutes}")
    assert answer.returncode == 0, answer.stderr


def preempt(run: Training, cluster: SlurmCluster, step: int = 25) -> dict[str, Any]:
    """Let an urgent job take the run's nodes, and return what the first attempt's end says.

    The ranks stand still until Slurm's notice, which brings them a SIGCONT, or until the supervisor has theirs.
    """
    run.wait_for_step(step)
    run.freeze()
    nodes = cluster.run("squeue", "-h", "-j", run.job_id, "-o", "%N").stdout.strip()
    urgent = cluster.urgent_job(nodes=nodes, seconds=5)
    if cluster.options.send_user_signal:
        run.wait_for_event("warned")
        run.thaw()
    ended = run.wait_for_event("ended")
    cluster.wait_for(lambda: cluster.job_state(urgent) in ("RUNNING", "COMPLETED"), "the urgent job's turn")
    return ended


def test_two_nodes_of_two_ranks_are_queued_run_and_completed_and_survive_preemption(
    login: LoginNode, cluster: SlurmCluster, reference_of_four: Training
) -> None:
    blocker = cluster.submit("--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=exec sleep 600")
    cluster.wait_for(lambda: cluster.job_state(blocker) == "RUNNING", "the blocker")
    run = login.submit("two-by-two", SUCCESSOR, *TWO_BY_TWO)
    waiting = wait_until("a reason", lambda: (said := run.status())["reason"] not in ("", "None") and said)
    assert waiting["state"] == "PENDING"
    assert waiting["sentence"].startswith(f"{waiting['reason']}: ")
    assert len(waiting["sentence"]) > len(waiting["reason"]) + 10
    cluster.run("scancel", blocker)

    run.wait_for_step(25)
    run.freeze()
    running = run.status()
    assert (running["state"], running["sentence"]) == ("RUNNING", "training")
    assert running["step"] >= 25
    assert running["total_steps"] == 120
    assert running["seconds_left"] > 0
    assert running["nodes"].startswith("node[")

    ended = preempt(run, cluster)
    assert (ended["ending"], ended["cause"]) == ("stopped", "preempted")
    assert run.wait_for_end()["state"] == "COMPLETED"
    [continued] = run.events("continued")
    assert continued["by"] == "successor"
    assert run_ids(run, "started") == [run.job_id, continued["job_id"]]
    assert run.events("resumed")[0]["step"] == ended["step"]
    for job_id in (run.job_id, continued["job_id"]):
        assert login.json("status", job_id)["name"] == run.name
    assert_same_training(run, reference_of_four)


def test_a_preempted_run_goes_on_by_requeue(login: LoginNode, cluster: SlurmCluster, reference: Training) -> None:
    run = login.submit("requeued", REQUEUE, *TWO_NODES)
    ended = preempt(run, cluster)
    assert (ended["ending"], ended["cause"]) == ("stopped", "preempted")
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert [event["by"] for event in run.events("continued")] == ["requeue"]
    assert run_ids(run, "started") == [run.job_id, run.job_id]
    assert_same_training(run, reference)


def test_a_signal_by_hand_saves_and_goes_on_in_the_same_allocation(
    login: LoginNode, cluster: SlurmCluster, reference: Training
) -> None:
    run = login.submit("signalled", SUCCESSOR, *TWO_NODES)
    run.wait_for_step(30)
    run.freeze()
    cluster.run("scancel", "--signal=USR2", "--batch", run.job_id)
    run.wait_for_event("warned")
    run.thaw()
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert run.events("ended")[0]["cause"] == "a signal by hand"
    assert run.events("relaunched")
    assert not run.events("continued")
    assert_same_training(run, reference)


def test_a_run_that_cannot_reach_slurm_after_its_save_tries_again(
    login: LoginNode, cluster: SlurmCluster, reference: Training, tmp_path: Path
) -> None:
    # sbatch and requeue fail three times, as they do while the controller restarts.
    for name, asks in (("sbatch", "true"), ("scontrol", '[ "$1" = requeue ]')):
        tool = tmp_path / name
        tool.write_text(
            f'#!/bin/sh\nif {asks} && [ -e "{tmp_path}/down" ]; then\n'
            f'echo x >> "{tmp_path}/tries"; [ $(wc -l < "{tmp_path}/tries") -ge 4 ] && rm "{tmp_path}/down"\n'
            "echo 'error: Unable to contact slurm controller (connect failure)' >&2; exit 1; fi\n"
            f'exec {shutil.which(name)} "$@"\n'
        )
        tool.chmod(0o755)
    shell = Terminal(login.folder, {**login.environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    run = shell.submit("patient", SUCCESSOR, *TWO_NODES)
    run.wait_for_step(20)
    (tmp_path / "down").touch()
    preempt(run, cluster)
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert [event["by"] for event in run.events("continued")] == ["successor"]
    assert_same_training(run, reference)


def test_looking_at_a_requeued_run_ends_slurms_two_minutes(terminal: Terminal, reference: Training) -> None:
    with SlurmCluster(accounting=False, grace_time_s=60, cred_expire=None) as cluster:
        run = LoginNode(terminal, cluster).submit("impatient", REQUEUE, *TWO_NODES)
        preempt(run, cluster)
        wait_until("the second attempt", lambda: run.status()["attempts"] == 2, timeout_s=60)
        waited_s = run.events("started")[1]["time"] - run.events("continued")[0]["time"]
        assert waited_s < 60, "Slurm's own wait is 121 s"
        assert run.wait_for_end()["state"] == "COMPLETED"
        assert_same_training(run, reference)


@pytest.mark.parametrize(
    ("way", "profile"), [("successor", SUCCESSOR), ("requeue", REQUEUE)], ids=["successor", "requeue"]
)
def test_a_run_at_its_time_limit_goes_on_by_itself(
    login: LoginNode, cluster: SlurmCluster, reference: Training, way: str, profile: str
) -> None:
    run = login.submit(f"limited-{way}", profile, *TWO_NODES, "--time", "30")
    run.wait_for_step(10)
    run.freeze()
    # The limit comes closer only now: on a busy machine a start takes longer than the shortest limit, a minute.
    elapsed_s = time.time() - run.events("submitted")[0]["time"]
    set_time_limit(cluster, run.job_id, math.ceil((elapsed_s + 45) / 60))
    warned = run.wait_for_event("warned")
    run.thaw()
    assert (warned["signal"], warned["cause"]) == ("SIGUSR2", "time limit")
    continued = run.wait_for_event("continued")
    assert continued["by"] == way
    set_time_limit(cluster, continued["job_id"], 30)
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert len(run.events("started")) == 2
    assert_same_training(run, reference)


def test_a_killed_rank_is_relaunched_in_the_same_allocation(
    login: LoginNode, cluster: SlurmCluster, reference: Training
) -> None:
    run = login.submit("killed-rank", SUCCESSOR, *TWO_NODES)
    run.wait_for_step(30)
    os.kill(run.rank_pids()[1], signal.SIGKILL)
    ended = run.wait_for_event("ended")
    assert (ended["ending"], ended["sentence"]) == ("rank_died", "rank 1 was killed by SIGKILL")
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert run_ids(run, "started") == [run.job_id, run.job_id]
    assert_same_training(run, reference)


def test_a_rank_that_hangs_is_ended_with_its_stacks_and_relaunched_in_the_same_allocation(
    login: LoginNode, cluster: SlurmCluster, reference: Training
) -> None:
    # Between the evaluations after steps 50 and 100 there is no other phase, whose silence is given half an hour.
    settings = ("--set", "watch.training_s=8", "--set", "checkpoint.every_steps=1000")
    run = login.submit("hung-rank", SUCCESSOR, *TWO_NODES, *settings)
    run.wait_for_step(62)
    os.kill(run.rank_pids()[1], signal.SIGSTOP)
    ended = run.wait_for_event("ended")
    assert (ended["ending"], ended["rank"]) == ("hung", 1)
    assert "Current thread" in (run.folder / "attempts" / "1" / "rank-0.log").read_text()
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert run_ids(run, "started") == [run.job_id, run.job_id]
    assert_same_training(run, reference)


def test_a_run_ended_by_scancel_stays_ended_until_it_is_resumed_from_a_sound_checkpoint(
    login: LoginNode, cluster: SlurmCluster, reference: Training
) -> None:
    run = login.submit("scancelled", SUCCESSOR, *TWO_NODES)
    run.wait_for_step(50)
    run.freeze()
    cluster.run("scancel", run.job_id)
    ended = wait_until("the job's end", lambda: (said := run.status())["state"] == "CANCELLED" and said)
    assert ended["sentence"] == "cancelled with scancel"
    assert not run.events("continued")
    assert cluster.run("squeue", "-h", "--me").stdout.strip() == ""

    newest = max((run.folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    with sorted((newest / "state").iterdir())[0].open("r+b") as file:
        file.truncate(1000)
    login.call("resume", run.name)
    assert run.wait_for_end()["state"] == "COMPLETED"
    [aside] = run.events("set_aside")
    assert newest.name in aside["checkpoint"]
    assert_same_training(run, reference)


def second_job(run: Training, cluster: SlurmCluster, event: str, **facts: Any) -> str:
    """Queue another job for a run, held, as if it were submitted by one who knew of no other; return its id."""
    job_id = cluster.submit("--hold", str(run.folder / "job.sbatch"))
    folder = RunFolder(run.folder)
    link_pickle(folder, folder.submitit_dir / f"{run.job_id}_submitted.pkl", job_id)
    folder.record(event, job_id=job_id, **facts)  # type: ignore[arg-type]
    return job_id


def test_of_two_jobs_on_one_run_folder_the_second_refuses_and_the_first_goes_on(
    login: LoginNode, cluster: SlurmCluster, reference: Training
) -> None:
    run = login.submit("shared", SUCCESSOR, *TWO_NODES)
    run.wait_for_step(20)
    run.freeze()
    second = second_job(run, cluster, "submitted", by="launcher")
    cluster.run("scontrol", "release", second)
    refused = run.wait_for_event("refused")
    assert refused["job_id"] == second
    assert refused["sentence"].startswith(f"another job works on this run: job {run.job_id} on ")
    cluster.wait_for(lambda: cluster.job_state(second) == "FAILED", "the second job's end")
    assert "ExitCode=2:0" in cluster.run("scontrol", "show", "job", second).stdout
    said = run.status()
    assert (said["state"], said["job_id"], said["sentence"]) == ("RUNNING", run.job_id, "training")
    run.thaw()
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert run_ids(run, "started") == [run.job_id]
    assert_same_training(run, reference)


def test_of_a_successor_and_slurms_own_requeue_at_once_exactly_one_goes_on(
    login: LoginNode, cluster: SlurmCluster, reference: Training
) -> None:
    run = login.submit("both", SUCCESSOR, *TWO_NODES)
    run.wait_for_step(20)
    run.freeze()
    successor = second_job(run, cluster, "continued", by="successor")
    cluster.run("scontrol", "requeue", run.job_id)
    cluster.run("scontrol", "release", successor)
    assert run.wait_for_end()["state"] == "COMPLETED"
    both = (run.job_id, successor)
    cluster.wait_for(lambda: all(cluster.job_state(each) == "COMPLETED" for each in both), "the end of both jobs")
    first, second = run_ids(run, "started")
    assert first == run.job_id
    assert second in both
    assert "another job goes on with this run" in run.logs()
    assert_same_training(run, reference)


def test_where_the_site_sends_the_user_signal_a_preempted_run_goes_on_too(
    terminal: Terminal, reference: Training
) -> None:
    with SlurmCluster(accounting=False, grace_time_s=60, send_user_signal=True) as cluster:
        run = LoginNode(terminal, cluster).submit("user-signal", SUCCESSOR, *TWO_NODES)
        ended = preempt(run, cluster)
        assert (ended["ending"], ended["cause"]) == ("stopped", "preempted")
        assert run.events("warned")[0]["signal"] == "SIGUSR2"
        assert run.wait_for_end()["state"] == "COMPLETED"
        assert_same_training(run, reference)


def test_where_processes_are_tracked_by_cgroup_preemption_and_a_killed_rank_are_survived_too(
    terminal: Terminal, reference: Training
) -> None:
    require_cgroup()
    with SlurmCluster(accounting=False, grace_time_s=60, proctrack="cgroup") as cluster:
        run = LoginNode(terminal, cluster).submit("cgroup", SUCCESSOR, *TWO_NODES)
        ended = preempt(run, cluster)
        assert (ended["ending"], ended["cause"]) == ("stopped", "preempted")
        run.wait_for_event("started", count=2)
        run.wait_for_step(ended["step"] + 10)
        os.kill(run.rank_pids()[1], signal.SIGKILL)
        assert run.wait_for_end()["state"] == "COMPLETED"
        assert [event["ending"] for event in run.events("ended")] == ["stopped", "rank_died", "finished"]
        assert_same_training(run, reference)


def test_a_preempted_job_without_any_grace_goes_on_from_its_last_checkpoint(
    terminal: Terminal, reference: Training
) -> None:
    with SlurmCluster(accounting=False, grace_time_s=0) as cluster:
        run = LoginNode(terminal, cluster).submit("no-grace", SUCCESSOR, *TWO_NODES)
        preempt(run, cluster)
        assert run.wait_for_end()["state"] == "COMPLETED"
        assert len(run.events("started")) == 2
        assert_same_training(run, reference)
