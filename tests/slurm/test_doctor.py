"""`hpcgemma doctor` on a real Slurm, and what its configuration decides for a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario import Terminal

from .cluster import SlurmCluster

SUCCESSOR = str(Path(__file__).parent.parent / "profiles" / "leonardo_test.yaml")
PREEMPTED = "Jobs of partition urgent may take its nodes. "


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """A cluster without accounting."""
    with SlurmCluster(accounting=False, grace_time_s=60) as running:
        yield running


@pytest.fixture(scope="module")
def login(terminal: Terminal, cluster: SlurmCluster) -> Terminal:
    """Its login node."""
    return Terminal(terminal.folder, {**terminal.environment, "SLURM_CONF": str(cluster.conf)})


def test_a_partition_that_requeues_with_grace_needs_no_chain(login: Terminal) -> None:
    facts = login.json("doctor", "--profile", SUCCESSOR)
    assert facts["way"] == "successor"
    assert facts["loses_work"] is False
    assert facts["preemption"] == {
        "mode": "requeue",
        "by": "Jobs of partition urgent",
        "where": "partition 'boost_usr_prod'",
        "grace_s": 60,
        "notice_s": 60,
        "exempt_s": 0,
        "reason": "",
    }
    told = dict(facts["sections"]["what happens to a job"])
    assert told["preemption"] == (
        f"{PREEMPTED}Each rank gets SIGTERM, the batch host nothing, and after 60 s all is ended. "
        "Slurm then requeues the job."
    )
    assert dict(facts["sections"]["the cluster"])["accounting"] == "none: ended jobs are soon forgotten"


def test_a_partition_that_cancels_without_grace_asks_for_a_chain(login: Terminal) -> None:
    said = login.call("doctor", "--profile", SUCCESSOR, "--partition", "spot").stdout
    assert f"{PREEMPTED}There is no grace: SIGTERM goes to all processes at once, and 5 s later SIGKILL." in said
    assert "chain: preempted jobs are cancelled here with no grace to submit the next one in" in said


def test_a_partition_whose_nodes_no_higher_tier_has_is_never_preempted(login: Terminal, cluster: SlurmCluster) -> None:
    for change in ("partitionname=urgent nodes=node[1-3]", "partitionname=spot nodes=node4"):
        assert cluster.run("scontrol", "update", *change.split()).returncode == 0
    try:
        facts = login.json("doctor", "--profile", SUCCESSOR, "--partition", "spot")
    finally:
        for name in ("urgent", "spot"):
            cluster.run("scontrol", "update", f"partitionname={name}", "nodes=ALL")
    assert dict(facts["sections"]["what happens to a job"])["preemption"] == (
        "Nothing preempts jobs of partition 'spot': it has no node in common with one of a higher PriorityTier "
        "(urgent)."
    )
    assert (facts["preemption"]["mode"], facts["way"]) == ("off", "successor")


def test_an_unknown_partition_is_the_users_fault(login: Terminal) -> None:
    said = login.call("doctor", "--profile", SUCCESSOR, "--partition", "nowhere", code=2).stderr
    assert said == (
        "Error: this cluster has no partition 'nowhere'\nTry:   --partition with one of: boost_usr_prod, urgent, spot\n"
    )
