"""By whom a job is preempted, and with what grace, follows from its partition or from its QOS, never from both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hpcgemma.destination import Destination
from hpcgemma.preemption import Preemption, preemption_of
from hpcgemma.slurm.qos import Qos
from tests.sites import destination, qos_destination, recorded_partitions, recorded_qos, recorded_site

BY_URGENT = Preemption(
    mode="requeue", by="Jobs of partition urgent", where="partition 'boost_usr_prod'", grace_s=30, notice_s=30
)
BY_EXPRESS = Preemption(
    mode="requeue", by="Jobs of QOS express", where="QOS 'scavenger'", grace_s=60, notice_s=60, exempt_s=0
)
WITHIN = Qos(name="crowd", preempt_mode="cancel", grace_s=0, preempts_within=True)
BOSS = Qos(name="boss", preempt_mode=None, grace_s=0, preempts=("crowd", "normal", "boss"))


def off(where: str, reason: str) -> Preemption:
    return Preemption(mode="off", where=where, reason=f"Nothing preempts jobs of {where}{reason}")


CASES: list[tuple[str, Destination, Preemption]] = [
    ("a lower tier", destination("boost_usr_prod"), BY_URGENT),
    (
        "no grace",
        destination("spot"),
        replace(BY_URGENT, mode="cancel", where="partition 'spot'", grace_s=0, notice_s=5),
    ),
    (
        "grace not told",
        destination("spot", GraceTime="?"),
        replace(BY_URGENT, mode="cancel", where="partition 'spot'", grace_s=None, notice_s=None),
    ),
    ("mode off", destination("urgent"), off("partition 'urgent'", " (PreemptMode=OFF).")),
    (
        "the highest tier",
        destination("spot", PriorityTier="10"),
        off("partition 'spot'", ": no partition has a higher PriorityTier."),
    ),
    (
        "no node in common with the higher tier",
        destination("spot", Nodes="node[7-9]"),
        off("partition 'spot'", ": it has no node in common with one of a higher PriorityTier (urgent)."),
    ),
    ("a node in common is enough", destination("boost_usr_prod", Nodes="node[4-9]"), BY_URGENT),
    (
        "no plugin",
        destination("spot", recorded_site(PreemptType="preempt/none")),
        Preemption(mode="off", reason="Slurm preempts no jobs here (PreemptType)."),
    ),
    ("its QOS has mode and grace", qos_destination("scavenger", "CANCEL"), BY_EXPRESS),
    (
        "its QOS is exempt for an hour, the cluster for a minute",
        qos_destination("spare", PreemptExemptTime="00:01:00"),
        replace(BY_EXPRESS, mode="cancel", where="QOS 'spare'", exempt_s=3600),
    ),
    (
        "the cluster's exempt time",
        qos_destination("scavenger", PreemptExemptTime="00:01:00"),
        replace(BY_EXPRESS, exempt_s=60),
    ),
    (
        "in no Preempt list",
        qos_destination("normal"),
        off("QOS 'normal'", ": no QOS has it in its Preempt list."),
    ),
    (
        "the cluster's mode, where the QOS has none",
        qos_destination("normal", "CANCEL", [*recorded_qos(), BOSS]),
        replace(BY_EXPRESS, mode="cancel", by="Jobs of QOS boss", where="QOS 'normal'", grace_s=0, notice_s=5),
    ),
    (
        "a QOS in its own Preempt list does not preempt itself",
        qos_destination("boss", known=[BOSS]),
        off("QOS 'boss'", ": no QOS has it in its Preempt list."),
    ),
    (
        "within its own QOS",
        qos_destination("crowd", known=[WITHIN]),
        Preemption(
            mode="cancel",
            by="Jobs of its own QOS with a higher priority",
            where="QOS 'crowd'",
            grace_s=0,
            notice_s=5,
        ),
    ),
    (
        "within its own QOS, as the cluster says, and by another",
        qos_destination("scavenger", "WITHIN,REQUEUE"),
        replace(BY_EXPRESS, by="Jobs of QOS express, and of its own QOS with a higher priority"),
    ),
]


@pytest.mark.parametrize(("there", "expected"), [each[1:] for each in CASES], ids=[each[0] for each in CASES])
def test_how_a_job_is_preempted_follows_from_partition_or_qos(there: Destination, expected: Preemption) -> None:
    assert there.preemption == expected


@pytest.mark.parametrize(("name", "missing"), [(None, "which QOS the job gets"), ("spare", "the rules of QOS 'spare'")])
def test_where_the_accounting_is_silent_nothing_is_guessed(name: str | None, missing: str) -> None:
    partitions = recorded_partitions()
    site = recorded_site(PreemptType="preempt/qos")
    told = preemption_of(site, partitions["boost_usr_prod"], list(partitions.values()), name, None)
    assert (told.mode, told.grace_s, told.notice_s) == ("unknown", None, None)
    assert f"sacctmgr did not tell {missing}: " in told.reason
