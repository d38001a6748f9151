"""A run judged in a job of its own, on a real Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scenario import Terminal, Training

from .cluster import SlurmCluster
from .login import SUCCESSOR, LoginNode


@pytest.fixture(scope="module")
def login(terminal: Terminal, small_cluster: SlurmCluster) -> LoginNode:
    """The login node of a cluster without accounting."""
    return LoginNode(terminal, small_cluster)


@pytest.fixture(scope="module")
def run(login: LoginNode) -> Training:
    """A finished run of two ranks."""
    run = login.submit("judged-later", SUCCESSOR, "--set", "training.max_steps=2")
    assert run.wait_for_end()["state"] == "COMPLETED"
    return run


def test_a_run_is_evaluated_by_as_many_ranks_as_it_has_gpus_of_a_node(
    login: LoginNode, small_cluster: SlurmCluster, run: Training
) -> None:
    done = login.call("evaluate", run.name, "--submit", "--wait", "--rows", "8", "--time", "01:00:00")
    job_id = done.stderr.partition("submitted job ")[2].partition(",")[0]
    assert f"submitted job {job_id}, which evaluates run judged-later" in done.stderr
    [written] = (run.folder / "evaluations").glob("*.json")
    assert json.loads(written.read_text())["rows"] == 8
    assert done.stderr.count("perplexity") == 1
    shown = small_cluster.run("scontrol", "show", "job", job_id).stdout
    assert "NumNodes=1 NumCPUs=2 NumTasks=2" in shown
    assert "gres/gpu=2" in shown or "gres:gpu:a100:2" in shown
    assert "TimeLimit=01:00:00" in shown


def test_a_dry_run_prints_what_sbatch_accepts(
    login: LoginNode, small_cluster: SlurmCluster, run: Training, tmp_path: Path
) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text(login.call("evaluate", run.name, "--submit", "--dry-run").stdout)
    tested = small_cluster.run("sbatch", "--test-only", str(script))
    assert tested.returncode == 0, tested.stderr


REFUSED = {
    "rows": (("--data", "gone.jsonl"), "--data: gone.jsonl finds no data file"),
    "time": (("--time", "2-0"), "no queue takes 1 nodes for 2-00:00:00"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_evaluated_never_enters_the_queue(
    login: LoginNode, small_cluster: SlurmCluster, run: Training, case: str
) -> None:
    arguments, said = REFUSED[case]
    jobs = small_cluster.run("squeue", "-h", "-t", "all").stdout
    assert said in login.call("evaluate", run.name, "--submit", *arguments, code=2).stderr
    assert small_cluster.run("squeue", "-h", "-t", "all").stdout == jobs
