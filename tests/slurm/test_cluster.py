"""The test cluster is a real Slurm: jobs, GPUs, accounts, preemption, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from . import database, processes
from .cluster import SlurmCluster

# Writes the name of each signal it gets; python, since a shell's trap waits for its child.
SIGNAL_WRITER = textwrap.dedent(
    """
    import os, signal, sys, time
    def note(number, frame):
        with open(sys.argv[1], "a") as file:
            print(signal.Signals(number).name, file=file)
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, note)
    with open(sys.argv[1], "a") as file:
        print("READY", os.environ.get("SLURM_RESTART_COUNT", "0"), file=file)
    while True:
        time.sleep(1)
    """
)


@pytest.fixture
def signal_writer(tmp_path: Path) -> Callable[[str], str]:
    """Return a maker of job scripts whose one task per node appends to ``signals`` what it is told."""

    def make(first_lines: str = "") -> str:
        (tmp_path / "writer.py").write_text(SIGNAL_WRITER, encoding="utf-8")
        job = tmp_path / "job.sh"
        command = f"exec srun {sys.executable} {tmp_path}/writer.py {tmp_path}/signals"
        job.write_text(f"#!/bin/sh\n{first_lines}\n{command}\n", encoding="utf-8")
        return str(job)

    return make


def lines(path: Path) -> list[str]:
    """Return a file's lines; none if it does not exist yet."""
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def preempt_and_check(cluster: SlurmCluster, script: str, signals: Path, expected: str) -> None:
    """Run a script, preempt it, and see the signal, the preemptor running and the job started anew."""
    job_id = cluster.submit("--nodelist=node2", "--gres=gpu:4", "--open-mode=append", "--output=/dev/null", script)
    cluster.wait_for(lambda: lines(signals) == ["READY 0"], "the task to be ready")

    urgent_id = cluster.urgent_job(nodes="node2", seconds=1)

    cluster.wait_for(lambda: len(lines(signals)) > 1, "the first signal", timeout_s=30)
    assert lines(signals)[1] == expected
    assert cluster.job_state(job_id) == "RUNNING"
    cluster.run("scontrol", "requeue", job_id)
    cluster.wait_for(lambda: cluster.job_state(urgent_id) == "COMPLETED", "the urgent job to complete")
    cluster.wait_for(lambda: "READY 1" in lines(signals), "the job to start again")
    cluster.run("scancel", job_id)
    cluster.wait_for(lambda: cluster.job_state(job_id) == "CANCELLED", "the job to end")


def test_a_job_runs_two_tasks_on_each_of_two_nodes_with_four_gpus(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    output = tmp_path / "output"
    task = "printf '%s %s %s\\n' $SLURMD_NODENAME $SLURM_LOCALID $CUDA_VISIBLE_DEVICES"
    job_id = slurm_cluster.submit(
        "--nodelist=node3,node4",
        "--ntasks-per-node=2",
        "--gres=gpu:4",
        f"--output={output}",
        f'--wrap=srun sh -c "{task}"'.replace("$", "\\$"),
    )

    slurm_cluster.wait_for(lambda: slurm_cluster.job_state(job_id) == "COMPLETED", "the job to complete")

    assert sorted(lines(output)) == [
        "node3 0 0,1,2,3",
        "node3 1 0,1,2,3",
        "node4 0 0,1,2,3",
        "node4 1 0,1,2,3",
    ]


def test_sacct_knows_a_finished_job(slurm_cluster: SlurmCluster) -> None:
    job_id = slurm_cluster.submit("--output=/dev/null", "--wrap=exit 3")

    def state() -> str:
        return slurm_cluster.run("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "State,ExitCode,Account").stdout.strip()

    slurm_cluster.wait_for(lambda: state().startswith("FAILED"), "sacct to know the end")
    assert state() == "FAILED|3:0|demo_acc"


@pytest.mark.parametrize(
    ("argument", "refusal"),
    [
        ("--account=someone_else", "Invalid account"),
        ("--qos=nonsense", "Invalid qos"),
        ("--time=2-00:00:00", "time limit"),
        ("--qos=boost_qos_dbg --nodes=3", "QOSMaxNodePerJobLimit"),
    ],
)
def test_a_request_beyond_the_rules_is_refused(slurm_cluster: SlurmCluster, argument: str, refusal: str) -> None:
    answer = slurm_cluster.run("sbatch", "--output=/dev/null", *argument.split(), "--wrap=true")

    assert answer.returncode != 0
    assert refusal in answer.stderr


def test_preemption_sends_sigterm_to_the_steps_and_the_job_starts_again(
    small_cluster: SlurmCluster, signal_writer: Callable[[str], str], tmp_path: Path
) -> None:
    preempt_and_check(small_cluster, signal_writer(""), tmp_path / "signals", "SIGTERM")


@pytest.mark.slow  # tests/faults/matrix has whole runs under the same preemption
def test_preemption_sends_the_signal_the_job_asked_for_where_the_site_allows_it(
    signal_writer: Callable[[str], str], tmp_path: Path
) -> None:
    with SlurmCluster(accounting=False, send_user_signal=True, grace_time_s=60, kill_wait_s=1) as cluster:
        preempt_and_check(cluster, signal_writer("#SBATCH --signal=USR2@60"), tmp_path / "signals", "SIGUSR2")


@pytest.mark.slow  # tests/faults/matrix has whole runs under the same preemption
def test_preemption_signals_the_steps_under_cgroup_too(
    cgroup_cluster: SlurmCluster, signal_writer: Callable[[str], str], tmp_path: Path
) -> None:
    preempt_and_check(cgroup_cluster, signal_writer(""), tmp_path / "signals", "SIGTERM")


def test_a_job_left_alone_in_its_grace_time_is_ended_and_requeued_by_slurm(
    signal_writer: Callable[[str], str], tmp_path: Path
) -> None:
    with SlurmCluster(accounting=False, grace_time_s=2, kill_wait_s=1) as cluster:
        job_id = cluster.submit("--nodelist=node1", "--output=/dev/null", signal_writer(""))
        cluster.wait_for(lambda: lines(tmp_path / "signals") == ["READY 0"], "the task to be ready")
        cluster.urgent_job(nodes="node1", seconds=1)
        cluster.wait_for(lambda: cluster.job_state(job_id) == "PENDING", "the requeue")


def test_two_clusters_live_side_by_side(small_cluster: SlurmCluster) -> None:
    with SlurmCluster(accounting=False) as other:
        job_id = small_cluster.submit("--output=/dev/null", "--wrap=exec sleep 1000")
        small_cluster.wait_for(lambda: small_cluster.user_processes(job_id), "the job's processes")

        assert other.job_state(job_id) == ""
        assert other.user_processes(job_id) == {}
    assert small_cluster.job_state(job_id) == "RUNNING"
    small_cluster.run("scancel", job_id)


def test_the_databases_of_several_clusters_are_made_side_by_side() -> None:
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as root, ThreadPoolExecutor() as threads:
        Path(root).chmod(0o755)  # the user mysql must be able to pass through
        servers = list(threads.map(lambda number: database.prepare(Path(root) / str(number)), range(3)))
    assert [server[0] for server in servers] == ["mariadbd"] * 3


def test_after_stop_no_process_is_left_not_even_of_a_running_job(tmp_path: Path) -> None:
    cluster = SlurmCluster(accounting=False)
    cluster.start()
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/sh\ntrap '' TERM\nsetsid sleep 1000 &\nsrun sleep 1000\n", encoding="utf-8")
    job_id = cluster.submit("--nodes=2", "--output=/dev/null", str(script))
    cluster.wait_for(lambda: len(cluster.user_processes(job_id)) >= 5, "script, two sruns, three sleeps")
    assert len(cluster.processes_left()) > 6

    cluster.stop()

    assert cluster.processes_left() == set()
    assert not cluster.folder.exists()


def test_a_cluster_whose_tests_are_killed_is_cleaned_up_by_its_guard(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent.parent.parent)!r})
        from tests.slurm.cluster import SlurmCluster
        cluster = SlurmCluster(accounting=False)
        cluster.start()
        print(cluster.folder, flush=True)
        time.sleep(1000)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        folder = Path(tests.stdout.readline().strip())
        assert len(processes.cluster_processes(folder, folder / "slurm.conf")) >= 6
        tests.send_signal(signal.SIGKILL)

    deadline = time.monotonic() + 60
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()
    assert processes.cluster_processes(folder, folder / "slurm.conf") == set()


def test_a_controller_that_was_stopped_or_paused_answers_again_and_its_job_still_runs() -> None:
    with SlurmCluster(accounting=False, message_timeout_s=2) as cluster:
        job_id = cluster.submit("--output=/dev/null", "--wrap=exec sleep 1000")
        cluster.wait_for(lambda: cluster.job_state(job_id) == "RUNNING", "the job to run")

        cluster.stop_controller()
        assert cluster.job_state(job_id) == ""
        cluster.start_controller()
        cluster.wait_for(lambda: cluster.job_state(job_id) == "RUNNING", "the job to be known again")

        cluster.pause_controller()
        assert cluster.job_state(job_id) == ""
        cluster.resume_controller()
        cluster.wait_for(lambda: cluster.job_state(job_id) == "RUNNING", "the job to be known again")


def test_a_lost_node_goes_down_and_its_job_is_requeued() -> None:
    with SlurmCluster(accounting=False, slurmd_timeout_s=5) as cluster:
        job_id = cluster.submit("--nodelist=node4", "--output=/dev/null", "--wrap=exec sleep 1000")
        cluster.wait_for(lambda: cluster.user_processes(job_id), "the job to run")

        cluster.kill_node("node4")

        assert cluster.user_processes(job_id) == {}
        cluster.wait_for(lambda: cluster.job_state(job_id) == "PENDING", "the requeue")
