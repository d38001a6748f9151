"""Data prepared in a job of their own, on a real Slurm, and found by the run that follows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scenario import RECIPE, Terminal, wait_until

from .cluster import SlurmCluster
from .login import SUCCESSOR, LoginNode

PREPARE = ("data", "prepare", "--profile", SUCCESSOR, "--recipe", str(RECIPE), "--submit")


@pytest.fixture(scope="module")
def login(terminal: Terminal, small_cluster: SlurmCluster) -> LoginNode:
    """The login node of a cluster without accounting."""
    return LoginNode(terminal, small_cluster)


def test_a_run_takes_what_a_job_without_a_gpu_has_prepared_and_prepares_nothing(
    login: LoginNode, small_cluster: SlurmCluster
) -> None:
    said = login.json(*PREPARE, "--wait")
    assert said["exit_code"] == 0
    log = Path(said["log"]).read_text()
    prepared = Path(log.partition("prepared in ")[2].partition(";")[0])
    assert prepared.parent == Path(login.environment["HPCGEMMA_RUNS_DIR"]) / ".prepared"
    shown = small_cluster.run("scontrol", "show", "job", said["job_id"]).stdout
    assert "gres/gpu" not in shown
    assert "TimeLimit=04:00:00" in shown
    assert "NumCPUs=2 NumTasks=1" in shown
    assert "of one command, and no run's" in login.call("status", said["job_id"]).stdout

    run = login.submit("after-preparing", SUCCESSOR, "--set", "training.max_steps=2")
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert (run.folder / "prepared" / "ids.bin").samefile(prepared / "ids.bin")
    assert [path.name for path in prepared.parent.iterdir()] == [prepared.name]


def test_data_that_are_refused_end_the_job_with_their_error_and_exit_code(
    login: LoginNode, small_cluster: SlurmCluster, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    good = [json.dumps({"prompt": f"number {index}", "completion": "yes"}) for index in range(200)]
    rows.write_text("\n".join(good + ["{broken"] * 200))  # the first 200 are looked at before the job is queued
    settings = ("--set", "data.generator=null", "--set", "data.format=auto", "--set", f"data.train={rows}")
    done = login.call(*PREPARE, *settings, "--wait", code=2)
    assert "Error: 200 of 400 rows cannot be trained on, more than data.max_bad_share" in done.stderr
    job_id = done.stderr.partition("submitted job ")[2].partition(",")[0]
    small_cluster.wait_for(lambda: small_cluster.job_state(job_id) == "FAILED", "the job's end")


def test_a_job_that_is_cancelled_is_not_waited_for_any_longer(login: LoginNode, small_cluster: SlurmCluster) -> None:
    blocker = small_cluster.submit("--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=exec sleep 600")
    small_cluster.wait_for(lambda: small_cluster.job_state(blocker) == "RUNNING", "the blocker")
    waiting = login.start(*PREPARE, "--wait")
    job = wait_until("the job", lambda: small_cluster.run("squeue", "-h", "-t", "PENDING", "-o", "%i").stdout.strip())
    small_cluster.run("scancel", job, blocker)
    _, said = waiting.communicate(timeout=120)
    assert waiting.returncode == 1
    assert "CANCELLED" in said


def test_a_dry_run_prints_what_sbatch_accepts_and_leaves_nothing_behind(
    login: LoginNode, small_cluster: SlurmCluster, tmp_path: Path
) -> None:
    runs = tmp_path / "it's a runs;folder"
    script = tmp_path / "job.sbatch"
    script.write_text(login.call(*PREPARE, "--dry-run", "--runs-dir", str(runs)).stdout)
    tested = small_cluster.run("sbatch", "--test-only", str(script))
    assert tested.returncode == 0, tested.stderr
    assert not runs.exists()


REFUSED = {
    "partition": ("cpu_queue: {partition: nowhere}", (), "this cluster has no partition 'nowhere'"),
    "cpus": ("cpu_queue: {cpus: 64}", (), "0 such nodes"),
    "time": ("cpu_queue: {max_walltime: 2-0}", (), "2-00:00:00 is asked for; partition 'boost_usr_prod' gives at most"),
    "limit": ("{}", ("--time", "05:00:00"), "05:00:00 is asked for; the CPU queue of 'other' gives at most 04:00:00"),
    "none": ("cpu_queue: null", (), "profile 'other' names no queue for jobs without a GPU"),
    "rows": ("{}", ("--set", "data.generator=null", "--set", "data.train=gone.jsonl"), "gone.jsonl finds no data file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_prepared_never_enters_the_queue(
    login: LoginNode, small_cluster: SlurmCluster, tmp_path: Path, case: str
) -> None:
    changes, arguments, said = REFUSED[case]
    profile = tmp_path / "other.yaml"
    profile.write_text(f"extends: {SUCCESSOR}\nname: other\n" + ("" if changes == "{}" else changes + "\n"))
    jobs = small_cluster.run("squeue", "-h", "-t", "all").stdout
    done = login.call("data", "prepare", "--profile", str(profile), *PREPARE[4:], *arguments, code=2)
    assert said in done.stderr
    assert "Try:" in done.stderr
    assert small_cluster.run("squeue", "-h", "-t", "all").stdout == jobs
