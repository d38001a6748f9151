"""Rows 1, 4 and 18 where the QOS decides who preempts whom, and what becomes of the preempted job."""

from __future__ import annotations

from tests.scenario import Training
from tests.slurm.cluster import SlurmCluster
from tests.slurm.configuration import CANCELLED_QOS, MAIN_PARTITION, REQUEUED_QOS
from tests.slurm.login import freeze_at_notice, nodes_of, preempt, run_ids

from .lab import Lab
from .observation import Observation

_GRACE_S = 30


def by_qos(lab: Lab) -> Observation:
    """Preemption with a grace time where Slurm requeues the jobs of the run's QOS."""
    run = _submitted(lab, "by-qos", REQUEUED_QOS)
    fault = preempt(run, lab.cluster)
    seen = lab.completed(run, "saved, and went on in a successor", [fault])
    _assert_saved_for_a_successor(run)
    return seen


def by_qos_that_cancels(lab: Lab) -> Observation:
    """Preemption with a grace time where Slurm cancels the jobs of the run's QOS."""
    run = _submitted(lab, "by-qos-that-cancels", CANCELLED_QOS)
    fault = preempt(run, lab.cluster)
    seen = lab.completed(run, "saved in the grace, and went on in a successor", [fault])
    _assert_saved_for_a_successor(run)
    return seen


def by_qos_to_the_end_of_its_grace(lab: Lab) -> Observation:
    """The same where the ranks do nothing in their grace, which is shorter than the partition's."""
    run = _submitted(lab, "by-qos-to-its-end", CANCELLED_QOS, grace_s=10)
    run.wait_for_step(25)
    fault = freeze_at_notice(run, lambda: lab.cluster.urgent_job(nodes=nodes_of(lab.cluster, run.job_id), seconds=5))
    happened = "saved in KillWait, after the grace; known not to be cancelled by hand, and went on in a successor"
    seen = lab.completed(run, happened, [fault])
    assert run.events("ended")[0]["cause"] == "preempted"
    return seen


def by_qos_without_grace(lab: Lab) -> Observation:
    """Preemption without grace where Slurm cancels the jobs of the run's QOS: the next job waits ahead."""
    run = _submitted(lab, "by-qos-without-grace", CANCELLED_QOS, grace_s=0)
    return _goes_on_in_its_link(lab, run, "cancelled by Slurm; the job that waited ahead went on", lost=20)


def by_qos_of_rules_unknown(lab: Lab) -> Observation:
    """The same with 30 s of grace, of which nobody knows, since slurmdbd is down from before the submission."""
    cluster = _configured(lab, _GRACE_S)
    cluster.stop_database()
    try:
        run = lab.submit("by-qos-of-rules-unknown", profile=_profile(lab, CANCELLED_QOS))
        seen = _goes_on_in_its_link(lab, run, "what Slurm would do was not known; the job that waited ahead went on")
    finally:
        cluster.start_database()
    return seen


def _goes_on_in_its_link(lab: Lab, run: Training, happened: str, *, lost: int = 0) -> Observation:
    run.wait_for_step(10)
    [ahead] = run_ids(run, "linked")
    fault = preempt(run, lab.cluster)
    seen = lab.completed(run, happened, [fault], lost=lost)
    assert run_ids(run, "started") == [run.job_id, ahead]
    assert run.events("ended")[0]["cause"] == "preempted"
    return seen


def _submitted(lab: Lab, name: str, qos: str, *, grace_s: int = _GRACE_S) -> Training:
    _configured(lab, grace_s)
    return lab.submit(name, profile=_profile(lab, qos))


def _configured(lab: Lab, grace_s: int) -> SlurmCluster:
    return lab.configure(accounting=True, preempt_by="qos", qos_grace_s=grace_s)


def _profile(lab: Lab, qos: str) -> str:
    queue = {"name": qos, "partition": MAIN_PARTITION, "qos": qos, "default": True}
    return lab.profile(f"leonardo_{qos}", queues=[queue])


def _assert_saved_for_a_successor(run: Training) -> None:
    ended = run.events("ended")[0]
    assert (ended["ending"], ended["cause"]) == ("stopped", "preempted")
    [continued] = run.events("continued")
    assert continued["by"] == "successor"
    assert run_ids(run, "started") == [run.job_id, continued["job_id"]]
