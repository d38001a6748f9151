"""Jobs queued ahead on a real Slurm: each has its turn, surplus ones are cancelled, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scenario import Terminal, Training, assert_same_training, wait_until

from .cluster import SlurmCluster
from .login import SUCCESSOR, TWO_NODES

SHORT_S = 45
"""What is left of a job whose time limit comes: Slurm looks every 30 s, and warns the last 20 s."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """A cluster without accounting."""
    with SlurmCluster(accounting=False, grace_time_s=60) as running:
        yield running


@pytest.fixture(scope="module")
def login(terminal: Terminal, cluster: SlurmCluster) -> Terminal:
    """The cluster's login node."""
    return Terminal(terminal.folder, {**terminal.environment, "SLURM_CONF": str(cluster.conf)})


def queued(cluster: SlurmCluster) -> list[str]:
    """Return the jobs that wait."""
    return cluster.run("squeue", "-h", "--me", "--states=PENDING", "-o", "%i").stdout.split()


def test_a_preempted_run_goes_on_in_its_next_link_and_the_surplus_is_cancelled(
    login: Terminal, cluster: SlurmCluster, reference: Training
) -> None:
    run = login.submit("chained", SUCCESSOR, *TWO_NODES, "--links", "4")
    links = [event["job_id"] for event in run.events("linked")]
    assert len(links) == 3
    waiting = cluster.run("scontrol", "show", "job", links[1]).stdout
    assert f"Dependency=afterany:{run.job_id}(unfulfilled),afterany:{links[0]}(unfulfilled)" in waiting
    run.wait_for_step(25)
    run.freeze()
    said = run.status()
    assert (said["state"], said["job_id"], said["link"], said["waiting_links"]) == (
        "RUNNING",
        run.job_id,
        [1, 4],
        links,
    )
    shown = login.call("status", run.name).stdout
    assert f"{run.job_id}  (link 1 of 4; waiting behind it: {', '.join(links)})" in shown
    nodes = cluster.run("squeue", "-h", "-j", run.job_id, "-o", "%N").stdout.strip()
    cluster.urgent_job(nodes=nodes, seconds=5)

    assert run.wait_for_end()["state"] == "COMPLETED"
    assert [event["by"] for event in run.events("continued")] == ["link"]
    assert [event["job_id"] for event in run.events("started")] == [run.job_id, links[0]]
    cluster.wait_for(lambda: not queued(cluster), "the surplus links' end")
    assert [cluster.job_state(each) for each in links[1:]] == ["CANCELLED", "CANCELLED"]
    assert_same_training(run, reference)


def test_cancel_ends_every_link(login: Terminal, cluster: SlurmCluster) -> None:
    run = login.submit("chain-cancelled", SUCCESSOR, *TWO_NODES, "--links", "3")
    run.wait_for_step(5)
    login.call("cancel", run.name)
    wait_until("the end", lambda: run.status()["state"] == "CANCELLED")
    cluster.wait_for(lambda: not queued(cluster), "the links' end")
    assert len(run.events("started")) == 1


def test_the_last_link_ends_the_chain_and_resume_goes_on(
    login: Terminal, cluster: SlurmCluster, reference: Training
) -> None:
    run = login.submit("one-link", SUCCESSOR, *TWO_NODES, "--links", "1")
    run.wait_for_step(5)
    run.freeze()
    cluster.run("scontrol", "update", f"JobId={run.job_id}", f"EndTime=now+{SHORT_S}")
    run.wait_for_event("warned")
    run.thaw()
    said = wait_until("the end", lambda: (said := run.status())["state"] == "INTERRUPTED" and said)
    assert said["sentence"] == "the last of its 1 links ended before it was finished"
    assert not run.events("continued")
    login.call("resume", run.name)
    assert run.wait_for_end()["state"] == "COMPLETED"
    lead_s = [event["lead_s"] for event in run.events("submitted")]
    assert lead_s[0] == 20
    assert 60 < lead_s[1] < 450, "the resumed job's warning follows from what the saves took"
    assert_same_training(run, reference)
