"""The client against a real Slurm, in good times and bad."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from hpcgemma.errors import InputError, SchedulerError
from hpcgemma.slurm.client import OrderRefused, SlurmClient, SubmitRefused, SubmitTimeout, clean_environment

from .cluster import SlurmCluster


@pytest.fixture(scope="module")
def faulty_cluster() -> Iterator[SlurmCluster]:
    """A cluster that forgets ended jobs soon and whose commands give up soon; each test mends what it breaks."""
    with SlurmCluster(message_timeout_s=2, min_job_age=2, cred_expire=None) as cluster:
        yield cluster


@pytest.fixture
def cluster(faulty_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    """The cluster, with this process's environment pointing to it, and its queue emptied afterwards."""
    for name, value in faulty_cluster.env().items():
        monkeypatch.setenv(name, value)
    yield faulty_cluster
    faulty_cluster.run("scancel", "--user=root")


@pytest.fixture
def client() -> SlurmClient:
    return SlurmClient(timeout_s=30)


def script(folder: Path, *lines: str) -> Path:
    path = folder / "job.sbatch"
    path.write_text("\n".join(["#!/bin/sh", "#SBATCH --output=/dev/null", *lines]) + "\n", encoding="utf-8")
    return path


def test_a_held_job_is_pending_for_a_reason(cluster: SlurmCluster, client: SlurmClient, tmp_path: Path) -> None:
    job_id = client.submit(script(tmp_path, "#SBATCH --hold --job-name='a b' --time=90", "true"))

    record = client.jobs([job_id])[job_id]

    assert (record.state, record.reason, record.name) == ("PENDING", "JobHeldUser", "a b")
    assert (record.account, record.partition, record.time_limit_min) == ("demo_acc", "boost_usr_prod", 90)
    assert record.submit_time is not None
    assert abs(datetime.now() - record.submit_time) < timedelta(seconds=30)


def test_a_job_is_kept_from_nodes_where_slurm_has_others(
    cluster: SlurmCluster, client: SlurmClient, tmp_path: Path
) -> None:
    assert client.known_nodes(["node2", "gone"]) == ["node2"]
    three = script(tmp_path, "#SBATCH --nodes=3 --mem=100", "sleep 60")
    assert client.objection(three, ["node2"]) == ""
    assert "node configuration is not available" in client.objection(three, ["node1", "node2"])
    with pytest.raises(SubmitRefused):
        client.submit(three, exclude=["node1", "node2"])

    job_id = client.submit(three, exclude=["node1"])
    cluster.wait_for(lambda: cluster.job_state(job_id) == "RUNNING", "the start")
    assert client.jobs([job_id])[job_id].node_list == "node[2-4]"
    client.requeue(job_id)
    client.exclude_nodes(job_id, ["node2"])
    cluster.wait_for(lambda: cluster.job_state(job_id) == "PENDING", "the requeue")
    details = client.show_job(job_id)
    assert details is not None
    assert details.fields["ExcNodeList"] == "node2"


def test_a_dependent_job_waits_for_the_other(cluster: SlurmCluster, client: SlurmClient, tmp_path: Path) -> None:
    first = client.submit(script(tmp_path, "#SBATCH --hold", "true"))

    second = client.submit(script(tmp_path, "true"), dependency=first)

    cluster.wait_for(lambda: client.jobs([second])[second].reason == "Dependency", "the reason")
    assert client.jobs([second])[second].dependency == f"afterany:{first}(unfulfilled)"


def test_an_unknown_job_id_does_not_hide_the_others(cluster: SlurmCluster, client: SlurmClient, tmp_path: Path) -> None:
    job_id = client.submit(script(tmp_path, "#SBATCH --hold", "true"))

    assert list(client.jobs(["99", job_id, "98"])) == [job_id]
    assert client.jobs(["99"]) == {}
    assert client.show_job("99") is None
    assert client.accounting_problem == ""


def test_what_is_no_job_id_is_the_users_mistake(client: SlurmClient) -> None:
    with pytest.raises(InputError, match="'12; rm' is not a Slurm job id"):
        client.jobs(["12; rm"])


def test_a_job_that_the_controller_has_forgotten_is_found_in_the_accounting(
    cluster: SlurmCluster, client: SlurmClient, tmp_path: Path
) -> None:
    job_id = client.submit(script(tmp_path, "#SBATCH --comment='run 7'", "exit 3"))
    cluster.wait_for(lambda: client.show_job(job_id) is None, "the controller to forget the job", timeout_s=120)

    record = client.jobs([job_id])[job_id]

    assert (record.state, record.exit_code, record.signal, record.source) == ("FAILED", 3, 0, "sacct")
    assert [found.job_id for found in client.find_by_comment("run 7")] == [job_id]


def test_each_refusal_names_slurms_own_words_and_what_helps(
    cluster: SlurmCluster, client: SlurmClient, tmp_path: Path
) -> None:
    with pytest.raises(SubmitRefused) as caught:
        client.submit(script(tmp_path, "#SBATCH --account=someone_else", "true"))

    assert caught.value.problem == (
        "Slurm does not let you use this account in this partition"
        " (Slurm: Batch job submission failed: Invalid account or account/partition combination specified)"
    )
    assert "sacctmgr show assoc" in caught.value.hint
    assert caught.value.exit_code == 3


def test_a_requeued_job_starts_soon_when_told_to_and_keeps_each_attempt(
    cluster: SlurmCluster, client: SlurmClient, tmp_path: Path
) -> None:
    job_id = client.submit(script(tmp_path, "exec sleep 1000"))
    cluster.wait_for(lambda: client.jobs([job_id])[job_id].state == "RUNNING", "the job to run")

    client.requeue(job_id)
    cluster.wait_for(lambda: client.jobs([job_id])[job_id].state == "PENDING", "the requeue")
    client.requeue(job_id)
    client.start_now(job_id)

    cluster.wait_for(lambda: client.jobs([job_id])[job_id].state == "RUNNING", "the second run")
    details = client.show_job(job_id)
    assert details is not None
    assert (details.record.restarts, details.requeue, details.preempt_time) == (1, True, None)
    cluster.wait_for(lambda: len(client.attempts(job_id)) == 2, "the accounting to know both")
    assert client.attempts(job_id)[0].state == "REQUEUED"


def test_a_killed_step_leaves_its_job_alone_and_a_killed_batch_script_fails_it(
    cluster: SlurmCluster, client: SlurmClient, tmp_path: Path
) -> None:
    body = "srun sleep 1000; exec srun sleep 1000"
    job_id = client.submit(script(tmp_path, "#SBATCH --no-requeue", "#SBATCH --time=20", body))
    cluster.wait_for(lambda: client.steps(job_id) == [f"{job_id}.0"], "the first step")

    client.signal_step(f"{job_id}.0", "KILL")
    cluster.wait_for(lambda: client.steps(job_id) == [f"{job_id}.1"], "the second step")
    client.set_time_limit(job_id, 5)
    assert (client.jobs([job_id])[job_id].state, client.jobs([job_id])[job_id].time_limit_min) == ("RUNNING", 5)
    with pytest.raises(OrderRefused, match=f"'scontrol requeue {job_id}' failed: .* presently disabled"):
        client.requeue(job_id)

    client.signal_batch(job_id, "KILL")
    cluster.wait_for(lambda: client.jobs([job_id])[job_id].state == "FAILED", "the end of the job")
    details = client.show_job(job_id)
    assert details is not None
    assert details.record.signal == 9


def test_a_cancelled_job_is_cancelled_and_an_unknown_one_is_no_error(
    cluster: SlurmCluster, client: SlurmClient, tmp_path: Path
) -> None:
    job_id = client.submit(script(tmp_path, "#SBATCH --hold", "true"))

    client.cancel(["99", job_id])

    cluster.wait_for(lambda: client.jobs([job_id])[job_id].state == "CANCELLED", "the end")


def test_a_partition_and_the_configuration_are_read(cluster: SlurmCluster, client: SlurmClient) -> None:
    groups = client.partition("boost_usr_prod")

    assert sum(group.count for group in groups) == 4
    assert {(group.cpus, group.memory_mb, group.gpus, group.max_time_min) for group in groups} == {
        (32, 514000, 4, 1440)
    }
    assert client.partition("nowhere") == []
    assert client.config()["JobRequeue"] == "1"


def test_a_stopped_controller_is_an_error_of_the_scheduler_and_no_job_exists(
    cluster: SlurmCluster, client: SlurmClient, tmp_path: Path
) -> None:
    cluster.stop_controller()
    try:
        with pytest.raises(SchedulerError, match="controller does not answer 'sbatch'") as caught:
            client.submit(script(tmp_path, "true"))
        assert not isinstance(caught.value, SubmitTimeout)
        for question in (lambda: client.jobs(["1"]), client.my_jobs, lambda: client.partition("urgent")):
            with pytest.raises(SchedulerError, match="does not answer"):
                question()
        with pytest.raises(SchedulerError, match="does not answer 'scancel'"):
            client.cancel(["1"])
    finally:
        cluster.start_controller()
    assert [job for job in client.my_jobs() if job.state == "PENDING"] == []


def test_a_submission_whose_answer_was_lost_says_so_and_the_job_is_found_by_its_comment(
    cluster: SlurmCluster, client: SlurmClient, tmp_path: Path
) -> None:
    other = client.submit(script(tmp_path, "#SBATCH --hold --comment=other-run", "true"))
    cluster.pause_controller()
    try:
        with pytest.raises(SubmitTimeout, match="may exist"):
            client.submit(script(tmp_path, "#SBATCH --hold --comment='run 42'", "true"))
    finally:
        cluster.resume_controller()

    cluster.wait_for(lambda: client.find_by_comment("run 42"), "the job to appear")
    [found] = client.find_by_comment("run 42")
    assert found.comment == "run 42"
    assert found.job_id != other


def test_a_refused_submission_leaves_nothing_to_be_found(
    cluster: SlurmCluster, client: SlurmClient, tmp_path: Path
) -> None:
    with pytest.raises(SubmitRefused, match="no node of the partition has"):
        client.submit(script(tmp_path, "#SBATCH --gres=gpu:5 --comment='run 43'", "true"))

    assert client.find_by_comment("run 43") == []


def test_our_own_patience_ends_too_when_the_controller_hangs(cluster: SlurmCluster, tmp_path: Path) -> None:
    cluster.pause_controller()
    try:
        with pytest.raises(SubmitTimeout, match=r"no answer within 0.5 s"):
            SlurmClient(timeout_s=0.5).submit(script(tmp_path, "#SBATCH --hold", "true"))
    finally:
        cluster.resume_controller()


def test_a_question_is_asked_again_while_the_controller_hangs_for_a_moment(cluster: SlurmCluster) -> None:
    told: list[str] = []

    def hear(sentence: str) -> None:
        told.append(sentence)
        cluster.resume_controller()

    cluster.pause_controller()
    try:
        patient = SlurmClient(timeout_s=0.5, patience_s=30, on_silence=hear)
        assert patient.config()["JobRequeue"] == "1"
    finally:
        cluster.resume_controller()
    assert told == ["Slurm's controller does not answer 'scontrol'; asking again, for 30 s at most"]


def test_without_slurmdbd_jobs_are_still_answered_and_the_reason_is_remembered(
    cluster: SlurmCluster, client: SlurmClient, tmp_path: Path
) -> None:
    job_id = client.submit(script(tmp_path, "#SBATCH --hold --comment=dbd", "true"))
    cluster.stop_database()
    try:
        assert list(client.jobs([job_id, "99"])) == [job_id]
        assert "Connection refused" in client.accounting_problem
        assert [record.job_id for record in client.find_by_comment("dbd")] == [job_id]
    finally:
        cluster.start_database()
    client.jobs(["99"])
    assert client.accounting_problem == ""


def test_without_accounting_the_site_is_asked_only_once(
    small_cluster: SlurmCluster, client: SlurmClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in small_cluster.env().items():
        monkeypatch.setenv(name, value)

    assert client.jobs(["99"]) == {}
    assert client.accounting_problem == "Slurm accounting storage is disabled"
    monkeypatch.setenv("PATH", "")
    assert client._sacct(since=datetime(2000, 1, 1), job_ids=["99"]) == []


def test_variables_of_the_users_shell_and_of_a_surrounding_job_do_not_leak_into_a_submission(
    cluster: SlurmCluster, client: SlurmClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaks = {"SBATCH_PARTITION": "urgent", "SBATCH_TIMELIMIT": "5", "SLURM_NTASKS": "7", "SLURM_JOB_ID": "1"}
    for name, value in (leaks | {"SQUEUE_STATES": "RUNNING", "SLURM_TIME_FORMAT": "relative"}).items():
        monkeypatch.setenv(name, value)
    output = tmp_path / "output"

    job_id = client.submit(script(tmp_path, f"#SBATCH --output={output}", 'echo "$SLURM_NTASKS:$SLURM_JOB_ID"'))

    record = client.jobs([job_id])[job_id]
    assert (record.partition, record.time_limit_min) == ("boost_usr_prod", 30)
    assert record.submit_time is not None
    cluster.wait_for(lambda: output.exists() and output.read_text(), "the job's output")
    assert output.read_text() == f":{job_id}\n"


def test_the_clean_environment_keeps_slurm_conf_and_what_is_not_slurms() -> None:
    dirty = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": "1", "SBATCH_QOS": "x", "SLURMER": "y", "HOME": "/h"}

    assert clean_environment(dirty) == {"SLURM_CONF": "/etc/slurm.conf", "SLURMER": "y", "HOME": "/h"}


def test_a_machine_without_slurm_is_told_what_to_do(
    client: SlurmClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(SchedulerError) as caught:
        client.submit(tmp_path / "job.sbatch")

    assert caught.value.problem == "Slurm's command 'sbatch' was not found on this machine"
    assert "--profile local" in caught.value.hint
