"""Where the QOS decides who preempts whom: what `hpcgemma doctor` says is what Slurm then does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.records import JobDetails
from hpcgemma.slurm.values import local_time
from tests.scenario import Terminal

from .cluster import SlurmCluster
from .configuration import ACCOUNT, CANCELLED_QOS, REQUEUED_QOS
from .login import SUCCESSOR

GRACE_S = 8
PARTITION_GRACE_S = 60
"""Longer, and of no effect."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """A cluster whose QOS have a grace of their own."""
    with SlurmCluster(preempt_by="qos", qos_grace_s=GRACE_S, grace_time_s=PARTITION_GRACE_S, kill_wait_s=1) as running:
        yield running


@pytest.fixture(scope="module")
def login(terminal: Terminal, cluster: SlurmCluster) -> Terminal:
    """The cluster's login node."""
    return Terminal(terminal.folder, {**terminal.environment, "SLURM_CONF": str(cluster.conf)})


@pytest.fixture
def client(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmClient:
    """A client of that cluster."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    return SlurmClient()


def sacctmgr(cluster: SlurmCluster, words: str) -> None:
    answer = cluster.run("sacctmgr", "--immediate", *words.split())
    assert answer.returncode == 0, answer.stderr


def told(login: Terminal, *more: str) -> tuple[dict[str, Any], str]:
    """Return the facts, and the line on preemption."""
    facts = login.json("doctor", "--profile", SUCCESSOR, *more)
    return facts, dict(facts["sections"]["what happens to a job"])["preemption"]


def preempted_to_the_end(cluster: SlurmCluster, client: SlurmClient, qos: str) -> tuple[float, JobDetails]:
    """Let a job that takes no notice of anything be preempted; return its seconds from the notice, and its end."""
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    job_id = cluster.submit(
        f"--qos={qos}", "--nodelist=node1", "--output=/dev/null", f"--wrap=exec python3 -c '{deaf}'"
    )
    cluster.wait_for(lambda: cluster.job_state(job_id) == "RUNNING", "the job to run")
    urgent = cluster.urgent_job(nodes="node1", seconds=1)

    def seen() -> JobDetails:
        details = client.show_job(job_id)
        assert details is not None
        return details

    cluster.wait_for(lambda: seen().preempt_time, "the notice")
    noticed = seen()
    assert noticed.preempt_time is not None
    assert noticed.record.end_time is not None
    cluster.wait_for(lambda: seen().record.state != "RUNNING", "the end of the grace")
    ended = seen()
    cluster.wait_for(lambda: cluster.job_state(urgent) == "COMPLETED", "the urgent job's turn")
    cluster.run("scancel", job_id)
    return (noticed.record.end_time - noticed.preempt_time).total_seconds(), ended


def test_a_job_of_a_qos_that_is_requeued_has_its_qos_own_grace(
    login: Terminal, cluster: SlurmCluster, client: SlurmClient
) -> None:
    facts, line = told(login, "--qos", REQUEUED_QOS)
    assert line == (
        "Jobs of QOS express may take its nodes. Each rank gets SIGTERM, the batch host nothing, and after "
        f"{GRACE_S} s all is ended. Slurm then requeues the job."
    )
    assert dict(facts["sections"]["the cluster"])["QOS"] == REQUEUED_QOS
    assert facts["way"] == "successor"
    grace_s, ended = preempted_to_the_end(cluster, client, REQUEUED_QOS)
    assert grace_s == facts["preemption"]["grace_s"] == GRACE_S
    assert ended.record.restarts == 1


def test_a_job_of_a_qos_that_is_cancelled_ends_with_its_preempt_time_moved(
    login: Terminal, cluster: SlurmCluster, client: SlurmClient
) -> None:
    facts, line = told(login, "--qos", CANCELLED_QOS)
    assert line.endswith(f"and after {GRACE_S} s all is ended. Slurm then cancels the job, and does not requeue it.")
    assert facts["way"] == "successor"
    grace_s, ended = preempted_to_the_end(cluster, client, CANCELLED_QOS)
    assert grace_s == GRACE_S
    assert ended.record.restarts == 0
    assert ended.preempt_time == ended.record.end_time


def test_without_grace_what_is_cancelled_asks_for_a_chain(
    login: Terminal, cluster: SlurmCluster, client: SlurmClient
) -> None:
    sacctmgr(cluster, f"modify qos {CANCELLED_QOS} set GraceTime=0 PreemptExemptTime=00:10:00")
    facts, line = told(login, "--qos", CANCELLED_QOS)
    assert line == (
        "Jobs of QOS express may take its nodes once it has run for 600 s. There is no grace: SIGTERM goes to all "
        "processes at once, and 1 s later SIGKILL. Slurm then cancels the job, and does not requeue it."
    )
    assert (facts["way"], facts["loses_work"]) == ("chain", False)
    job_id = cluster.submit(f"--qos={CANCELLED_QOS}", "--output=/dev/null", "--wrap=exec sleep 600")
    cluster.wait_for(lambda: cluster.job_state(job_id) == "RUNNING", "the job to run")
    details = client.show_job(job_id)
    assert details is not None
    safe_until, start = local_time(details.fields["PreemptEligibleTime"]), details.record.start_time
    assert safe_until is not None
    assert start is not None
    assert (safe_until - start).total_seconds() == facts["preemption"]["exempt_s"] == 600
    cluster.run("scancel", job_id)


def test_a_job_that_asks_for_no_qos_is_told_of_its_accounts_default(login: Terminal, cluster: SlurmCluster) -> None:
    facts, line = told(login)
    assert (facts["qos"], line) == (
        "normal",
        "Nothing preempts jobs of QOS 'normal': no QOS has it in its Preempt list.",
    )
    sacctmgr(cluster, f"modify account {ACCOUNT} set DefaultQOS={REQUEUED_QOS}")
    facts, line = told(login)
    job_id = cluster.submit("--hold", "--output=/dev/null", "--wrap=true")
    assert facts["qos"] == cluster.run("squeue", "-h", "-j", job_id, "-o", "%q").stdout.strip() == REQUEUED_QOS
    assert line.startswith("Jobs of QOS express may take its nodes. ")
    cluster.run("scancel", job_id)
    sacctmgr(cluster, f"modify account {ACCOUNT} set DefaultQOS=-1")


def test_a_qos_of_none_is_the_users_fault(login: Terminal) -> None:
    said = login.call("doctor", "--profile", SUCCESSOR, "--qos", "nobody", code=2).stderr
    names = "normal, boost_qos_dbg, boost_qos_lprod, scavenger, spare, express"
    assert said == f"Error: this cluster has no QOS 'nobody'\nTry:   --qos with one of: {names}\n"


def test_a_slurmdbd_that_hangs_is_not_waited_for(client: SlurmClient, cluster: SlurmCluster) -> None:
    hasty = SlurmClient(accounting_timeout_s=1)
    cluster.pause_database()
    began = time.monotonic()
    try:
        assert (hasty.all_qos(), hasty.default_qos("testcluster", None, "boost_usr_prod")) == (None, None)
    finally:
        cluster.resume_database()
    assert time.monotonic() - began < 8
    assert client.all_qos() is not None


def test_while_slurmdbd_is_down_what_it_knows_is_told_as_unknown(login: Terminal, cluster: SlurmCluster) -> None:
    cluster.stop_database()
    try:
        facts, line = told(login, "--qos", REQUEUED_QOS)
    finally:
        cluster.start_database()
    assert (facts["preemption"]["mode"], facts["preemption"]["grace_s"], facts["way"]) == ("unknown", None, "chain")
    assert line == (
        "The QOS decides here who preempts whom (PreemptType=preempt/qos), and sacctmgr did not tell the rules of QOS "
        "'scavenger': by whom a job is preempted, with what grace, and what then becomes of it is not known."
    )
    assert facts["risks"] == [
        {
            "problem": "what becomes of a preempted job of QOS 'scavenger' is not known",
            "hint": "see what 'sacctmgr show qos' says of PreemptMode and GraceTime",
            "loses_work": False,
        }
    ]
