"""How a job is preempted: by whose jobs, after what time, with what grace, and what becomes of it. Pure.

Slurm has two rules for it (PreemptType), and each reads its own settings: under preempt/partition_prio those of the
job's partition, under preempt/qos those of the job's QOS, and of the partition none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcgemma.slurm.qos import Qos
from hpcgemma.slurm.site import Partition, PreemptMode, Site
from hpcgemma.slurm.values import host_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemption:
    """How a job is preempted."""

    mode: PreemptMode
    by: str = ""
    """Whose jobs preempt, as the subject of a sentence."""
    where: str = ""
    """What decides it, its kind first, as ``partition 'spot'`` or ``QOS 'scavenger'``."""
    grace_s: int | None = None
    """Seconds from the notice to the end; 0: KillWait alone; None: not known."""
    notice_s: int | None = None
    """Seconds in which a save must be done: the grace, or KillWait where there is none; None: not known."""
    exempt_s: int = 0
    """Seconds of the job in which it is not preempted."""
    reason: str = ""
    """Why nothing preempts it, or why that is not known, as a sentence."""


def preemption_of(
    site: Site,
    partition: Partition,
    partitions: Sequence[Partition],
    qos: str | None = None,
    known_qos: Sequence[Qos] | None = None,
) -> Preemption:
    """Return how a job of a partition is preempted.

    Args:
        site: The cluster.
        partition: Where the job is.
        partitions: All of the cluster; under preempt/partition_prio those of a higher tier preempt.
        qos: Name of the job's; None where it is not known.
        known_qos: All of the cluster, which decide under preempt/qos; None where the accounting did not tell.
    """
    match site.preempt_by:
        case "none":
            return Preemption(mode="off", reason="Slurm preempts no jobs here (PreemptType).")
        case "partition":
            return _by_partition(site, partition, partitions)
        case "qos":
            return _by_qos(site, qos, known_qos)
        case _:
            return _preemption(site, partition.preempt_mode, partition.grace_s, "Other jobs", _place(partition))


def _by_partition(site: Site, partition: Partition, partitions: Sequence[Partition]) -> Preemption:
    place = _place(partition)
    if partition.preempt_mode == "off":
        return Preemption(mode="off", where=place, reason=f"Nothing preempts jobs of {place} (PreemptMode=OFF).")
    above = [each for each in partitions if each.priority_tier > partition.priority_tier]
    if not above:
        reason = f"Nothing preempts jobs of {place}: no partition has a higher PriorityTier."
        return Preemption(mode="off", where=place, reason=reason)
    sharing = [each.name for each in above if _share_nodes(partition, each)]
    if not sharing:
        names = _words([each.name for each in above])
        reason = (
            f"Nothing preempts jobs of {place}: it has no node in common with one of a higher PriorityTier ({names})."
        )
        return Preemption(mode="off", where=place, reason=reason)
    by = f"Jobs of partition {_words(sharing)}"
    return _preemption(site, partition.preempt_mode, partition.grace_s, by, place)


def _by_qos(site: Site, name: str | None, known: Sequence[Qos] | None) -> Preemption:
    place = f"QOS {name!r}" if name else ""
    own = next((each for each in known or () if each.name == name), None)
    if known is None or own is None:
        what = f"the rules of {place}" if place else "which QOS the job gets"
        reason = (
            f"The QOS decides here who preempts whom (PreemptType=preempt/qos), and sacctmgr did not tell {what}: by "
            "whom a job is preempted, with what grace, and what then becomes of it is not known."
        )
        return Preemption(mode="unknown", by="Jobs of another QOS", where=place or "the job's QOS", reason=reason)
    mode = own.preempt_mode or site.preempt_mode
    above = [each.name for each in known if own.name in each.preempts and each.name != own.name]
    within = own.preempts_within or site.preempts_within
    if mode == "off":
        return Preemption(mode="off", where=place, reason=f"Nothing preempts jobs of {place} (PreemptMode).")
    if not above and not within:
        reason = f"Nothing preempts jobs of {place}: no QOS has it in its Preempt list."
        return Preemption(mode="off", where=place, reason=reason)
    whose = [f"of QOS {_words(above)}"] if above else []
    whose += ["of its own QOS with a higher priority"] if within else []
    exempt_s = site.exempt_s if own.exempt_s is None else own.exempt_s
    return _preemption(site, mode, own.grace_s, f"Jobs {', and '.join(whose)}", place, exempt_s=exempt_s)


def _preemption(
    site: Site, mode: PreemptMode, grace_s: int | None, by: str, where: str, *, exempt_s: int | None = None
) -> Preemption:
    if mode == "off":
        return Preemption(mode="off", where=where, reason=f"Nothing preempts jobs of {where} (PreemptMode=OFF).")
    return Preemption(
        mode=mode,
        by=by,
        where=where,
        grace_s=grace_s,
        notice_s=site.kill_wait_s if grace_s == 0 else grace_s,
        exempt_s=site.exempt_s if exempt_s is None else exempt_s,
    )


def _place(partition: Partition) -> str:
    return f"partition {partition.name!r}"


def _share_nodes(one: Partition, other: Partition) -> bool:
    if one.nodes is None or other.nodes is None:
        return True
    return not set(host_names(one.nodes)).isdisjoint(host_names(other.nodes))


def _words(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
