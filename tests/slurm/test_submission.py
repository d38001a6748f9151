"""What a real Slurm makes of what we submit, and what we make of its refusals."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario import RECIPE, Terminal, wait_until

from .cluster import SlurmCluster
from .login import SUCCESSOR, LoginNode

SECRET = "hf_thisIsNobodysToken0123456789"


@pytest.fixture(scope="module")
def login(terminal: Terminal, slurm_cluster: SlurmCluster) -> LoginNode:
    """The login node of the cluster with accounting."""
    return LoginNode(terminal, slurm_cluster)


@pytest.fixture
def blocked(slurm_cluster: SlurmCluster) -> Iterator[None]:
    """All nodes are taken, so that what is submitted stays in the queue; it is cancelled afterwards."""
    blocker = slurm_cluster.submit("--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=exec sleep 600")
    slurm_cluster.wait_for(lambda: slurm_cluster.job_state(blocker) == "RUNNING", "the blocker")
    yield
    slurm_cluster.run("scancel", "--me")
    slurm_cluster.wait_for(lambda: not slurm_cluster.run("squeue", "-h").stdout.strip(), "the queue to be empty")


def dry_run(login: LoginNode, *arguments: str) -> str:
    """Return the script that would be submitted."""
    return login.call("submit", "--dry-run", *arguments).stdout


@pytest.mark.parametrize("recipe", ["gemma2_9b_lora", "svg_captions_tiny"])
def test_sbatch_accepts_exactly_what_a_dry_run_prints(
    login: LoginNode, slurm_cluster: SlurmCluster, tmp_path: Path, recipe: str
) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text(dry_run(login, "--profile", "leonardo", "--recipe", recipe, "--account", "demo_acc"))
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    tested = slurm_cluster.run("sbatch", "--test-only", str(script))
    assert tested.returncode == 0, tested.stderr
    assert "to start at" in tested.stderr


def test_a_dry_run_says_how_the_run_would_go_on_here(login: LoginNode) -> None:
    said = login.call("submit", "--dry-run", "--profile", SUCCESSOR, "--recipe", str(RECIPE)).stderr
    assert "goes on by successor: it starts a second after its nodes are free; a requeued job waits" in said


@pytest.mark.parametrize("name", ["a b", "it's", "a;touch pwned", "$(touch pwned)", "`touch pwned`", "#x"])
def test_a_hostile_folder_reaches_slurm_as_it_is_and_runs_nothing(
    login: LoginNode, slurm_cluster: SlurmCluster, tmp_path: Path, name: str, blocked: None
) -> None:
    runs = tmp_path / name
    said = login.json(
        "submit", "--profile", SUCCESSOR, "--recipe", str(RECIPE), "--account", "demo_acc", "--runs-dir", str(runs)
    )
    record = slurm_cluster.run("scontrol", "show", "job", said["job_id"]).stdout
    out = next(line.strip() for line in record.splitlines() if line.strip().startswith("StdOut="))
    assert out == f"StdOut={runs / said['name'] / 'submitit'}/{said['job_id']}_0_log.out"
    assert not list(tmp_path.rglob("pwned"))
    assert not list(login.folder.rglob("pwned"))


# A % is tried here: scontrol shows %% as if it were a pattern (22.05), but slurmd writes where it should.
def test_a_hostile_folder_runs_to_the_end(login: LoginNode, slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    runs = tmp_path / "a b;$(touch pwned) 'x' %j"
    run = login.submit(
        "hostile", SUCCESSOR, "--account", "demo_acc", "--runs-dir", str(runs), "--set", "training.max_steps=2"
    )
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert (run.folder / "submitit" / f"{run.job_id}_0_log.out").is_file()
    assert (run.folder / "attempts" / "1" / "rank-1.log").is_file()
    assert not list(tmp_path.rglob("pwned"))
    slurm_cluster.wait_for(lambda: slurm_cluster.job_state(run.job_id) == "COMPLETED", "the job's end")
    assert login.json("status", run.job_id)["name"] == "hostile"


def test_one_sbatch_call_a_run_with_the_callers_slurm_variables_and_secrets_left_out(
    login: LoginNode, slurm_cluster: SlurmCluster, tmp_path: Path, blocked: None
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    calls = tmp_path / "calls"
    sbatch = shutil.which("sbatch")
    (tools / "sbatch").write_text(f'#!/bin/sh\nenv > "{calls}.env"\necho call >> "{calls}"\nexec {sbatch} "$@"\n')
    (tools / "sbatch").chmod(0o755)
    leaking = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SBATCH_PARTITION": "urgent",
        "SBATCH_TIMELIMIT": "1",
        "SLURM_JOB_ID": "1",
        "SLURM_CPUS_PER_TASK": "31",
        "HF_TOKEN": SECRET,
    }
    shell = Terminal(login.folder, {**login.environment, **leaking})
    run = shell.submit("secretive", SUCCESSOR, "--account", "demo_acc")
    assert calls.read_text() == "call\n"
    environment = Path(f"{calls}.env").read_text()
    assert "SBATCH_PARTITION" not in environment
    assert "SLURM_JOB_ID" not in environment
    assert "SLURM_CONF=" in environment
    record = slurm_cluster.run("scontrol", "show", "job", run.job_id).stdout
    assert "Partition=boost_usr_prod" in record
    assert "TimeLimit=00:30:00" in record
    for path in run.folder.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
        assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0
    assert run.status()["job_ids"] == [run.job_id]
    shell.call("cancel", run.name)
    wait_until("the end", lambda: run.status()["state"] == "CANCELLED")
    assert run.status()["sentence"] == "cancelled by you"


REFUSED = {
    "account": (("--account", "nobody"), 3, "account"),
    "time": (("--account", "demo_acc", "--time", "1-00:01:00"), 2, "no queue takes"),
    "gpus": (("--account", "demo_acc", "--set", "resources.gpus_per_node=8"), 2, "asks for 8 GPUs a node"),
    "nodes": (
        ("--account", "demo_acc", "--set", "resources.nodes=8", "--set", "training.global_batch=64"),
        2,
        "no queue takes 8 nodes",
    ),
    "memory": (
        ("--account", "demo_acc", "--set", "resources.memory_per_gpu_mb=260000"),
        2,
        "a node of 'leonardo_test' gives at most 494000 MB",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_run_never_enters_the_queue(login: LoginNode, slurm_cluster: SlurmCluster, case: str) -> None:
    arguments, code, said = REFUSED[case]
    name = f"refused-{case}"
    done = login.call("submit", "--profile", SUCCESSOR, "--recipe", str(RECIPE), "--name", name, *arguments, code=code)
    assert said in done.stderr
    assert "Try:" in done.stderr
    assert not (Path(login.environment["HPCGEMMA_RUNS_DIR"]) / name).exists()
    assert slurm_cluster.run("squeue", "-h", "-o", "%j").stdout.strip() == ""


def test_limits_a_profile_does_not_know_are_asked_of_slurm(
    login: LoginNode, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    profile = tmp_path / "other.yaml"
    profile.write_text(
        "extends: generic_slurm\nname: other\ndevice: cpu\n"
        "request: {memory_per_gpu_mb: 400000}\n"
        "queues: [{name: prod, partition: boost_usr_prod}]\n"
    )
    shape = ("--set", "resources.nodes=5", "--set", "training.global_batch=80", "--time", "2-0")
    done = login.call(
        "submit", "--profile", str(profile), "--recipe", str(RECIPE), "--account", "demo_acc", *shape, code=2
    )
    assert "2-00:00:00 is asked for; partition 'boost_usr_prod' gives at most 1-00:00:00" in done.stderr
    assert "5 nodes with 2 GPUs, 800000 MB and 2 CPUs each are asked for" in done.stderr
    profile.write_text(profile.read_text().replace("boost_usr_prod", "boost_usr_prdo"))
    done = login.call("submit", "--profile", str(profile), "--recipe", str(RECIPE), code=2)
    assert "this cluster has no partition 'boost_usr_prdo'" in done.stderr


def test_a_job_that_hpcgemma_did_not_submit_is_shown_and_left_alone(
    login: LoginNode, slurm_cluster: SlurmCluster, blocked: None
) -> None:
    foreign = slurm_cluster.submit("--job-name=somebodys", "--output=/dev/null", "--wrap=true", "--exclusive")
    wait_until("its reason", lambda: "Resources" in login.call("status", foreign).stdout)
    shown = login.call("status", foreign).stdout
    assert "somebodys  (not submitted by hpcgemma)" in shown
    assert "PENDING: Resources: " in shown
    assert login.json("status", foreign)["state"] == "PENDING"
    assert "was not submitted by hpcgemma" in login.call("cancel", foreign, code=2).stderr
    assert slurm_cluster.job_state(foreign) == "PENDING"


def test_a_job_id_that_does_not_exist_says_so(login: LoginNode) -> None:
    done = login.call("status", "99999999", code=2)
    assert done.stderr == (
        "Error: neither hpcgemma nor Slurm knows a job 99999999\n"
        "Try:   hpcgemma status  lists all runs; squeue --me your jobs\n"
    )


def test_a_submission_whose_answer_was_lost_finds_its_job_and_makes_no_second_one(terminal: Terminal) -> None:
    with SlurmCluster(accounting=False, message_timeout_s=2) as cluster:
        login = LoginNode(terminal, cluster)
        cluster.submit("--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=exec sleep 600")
        tools = cluster.folder / "bin"
        tools.mkdir()
        # The controller hangs just when sbatch asks, and recovers when sbatch has given up.
        pid = next(path.name for path in Path("/proc").glob("[0-9]*") if _is_controller_of(path, cluster))
        (tools / "sbatch").write_text(
            f'#!/bin/sh\nkill -STOP {pid}\n{shutil.which("sbatch")} "$@"\ncode=$?\nkill -CONT {pid}\nexit $code\n'
        )
        (tools / "sbatch").chmod(0o755)
        shell = Terminal(login.folder, {**login.environment, "PATH": f"{tools}:{os.environ['PATH']}"})
        run = shell.submit("lost-answer", SUCCESSOR)
        jobs = cluster.run("squeue", "-h", "-n", "lost-answer", "-o", "%i").stdout.split()
        assert jobs == [run.job_id]


def test_a_submission_into_a_silence_is_kept_and_found_when_slurm_answers_again(terminal: Terminal) -> None:
    with SlurmCluster(accounting=False, message_timeout_s=2) as cluster:
        login = LoginNode(terminal, cluster)
        cluster.submit("--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=exec sleep 600")
        tools = cluster.folder / "bin"
        tools.mkdir()
        # The answer is lost, and to every question afterwards Slurm is silent.
        (tools / "sbatch").write_text(
            f'#!/bin/sh\n{shutil.which("sbatch")} "$@" >/dev/null\n'
            "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2\nexit 1\n"
        )
        (tools / "squeue").write_text(
            "#!/bin/sh\n"
            "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2\nexit 1\n"
        )
        for tool in tools.iterdir():
            tool.chmod(0o755)
        environment = {**login.environment, "PATH": f"{tools}:{os.environ['PATH']}"}
        silent = Terminal(login.folder, environment)
        said = silent.call("submit", "--profile", SUCCESSOR, "--recipe", str(RECIPE), "--name", "silence", code=3)
        assert "so the job may exist" in said.stderr
        assert "hpcgemma status silence  looks for its job" in said.stderr
        found = login.json("status", "silence")
        assert found["state"] == "PENDING"
        jobs = cluster.run("squeue", "-h", "-n", "silence", "-o", "%i").stdout.split()
        assert jobs == [found["job_id"]]
        folder = Path(found["folder"])
        assert (folder / "submitit" / f"{found['job_id']}_submitted.pkl").is_file()


def _is_controller_of(process: Path, cluster: SlurmCluster) -> bool:
    try:
        words = (process / "cmdline").read_bytes()
        environment = (process / "environ").read_bytes()
    except OSError:
        return False
    return words.startswith(b"slurmctld\0") and str(cluster.conf).encode() in environment
