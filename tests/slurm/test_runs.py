"""The main job on a real Slurm: queued, looked at while it waits and runs, preempted, and ended in the same bits.

What else may befall it is in the fault matrix (``tests/faults/matrix``).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scenario import Terminal, Training, assert_same_training, wait_until

from .cluster import SlurmCluster
from .login import REQUEUE, SUCCESSOR, TWO_NODES, LoginNode, preempt, run_ids

TWO_BY_TWO = ("--set", "resources.nodes=2", "--set", "resources.gpus_per_node=2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """A cluster without accounting: everything must work without sacct."""
    with SlurmCluster(accounting=False, grace_time_s=60) as running:
        yield running


@pytest.fixture(scope="module")
def login(terminal: Terminal, cluster: SlurmCluster) -> LoginNode:
    """The cluster's login node."""
    return LoginNode(terminal, cluster)


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

    preempt(run, cluster)
    [ended] = run.events("ended")
    assert (ended["ending"], ended["cause"]) == ("stopped", "preempted")
    assert run.wait_for_end()["state"] == "COMPLETED"
    [continued] = run.events("continued")
    assert continued["by"] == "successor"
    assert run_ids(run, "started") == [run.job_id, continued["job_id"]]
    assert run.events("resumed")[0]["step"] == ended["step"]
    for job_id in (run.job_id, continued["job_id"]):
        assert login.json("status", job_id)["name"] == run.name
    assert_same_training(run, reference_of_four)


def test_looking_at_a_requeued_run_ends_slurms_two_minutes(terminal: Terminal, reference: Training) -> None:
    with SlurmCluster(accounting=False, grace_time_s=60, cred_expire=None) as cluster:
        run = LoginNode(terminal, cluster).submit("impatient", REQUEUE, *TWO_NODES)
        preempt(run, cluster)
        wait_until("the second attempt", lambda: run.status()["attempts"] == 2, timeout_s=60)
        waited_s = run.events("started")[1]["time"] - run.events("continued")[0]["time"]
        assert waited_s < 60, "Slurm's own wait is 121 s"
        assert run.wait_for_end()["state"] == "COMPLETED"
        assert_same_training(run, reference)
