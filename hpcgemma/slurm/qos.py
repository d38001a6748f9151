"""QOS: what sacctmgr is asked about them, how its text is read, and which of them a job gets. Pure.

``scontrol show assoc_mgr`` would need no slurmdbd, but has neither GraceTime nor Preempt (22.05).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcgemma.slurm.site import PreemptMode, preempt_mode_of, preempts_within
from hpcgemma.slurm.values import duration_s

USUAL_QOS = "normal"
"""What a job gets that asks for none, where its association has no default (seen on 22.05)."""

_QOS_FIELDS = ("Name", "PreemptMode", "GraceTime", "Preempt", "PreemptExemptTime")
_ASSOCIATION_FIELDS = ("DefaultAccount", "Cluster", "Account", "Partition", "DefaultQOS", "QOS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Qos:
    """What holds for the jobs of one QOS where the QOS decides who preempts whom: ``sacctmgr show qos``."""

    name: str
    preempt_mode: PreemptMode | None
    """What becomes of its jobs when they are preempted; None: the cluster's."""
    grace_s: int | None
    """GraceTime: seconds from the notice to the end of its preempted jobs; None: not told."""
    preempts: tuple[str, ...] = ()
    """Preempt: the QOS whose jobs its own preempt."""
    preempts_within: bool = False
    """Whether its jobs preempt each other, those of a higher priority the others."""
    exempt_s: int | None = None
    """PreemptExemptTime: seconds of its jobs in which they are not preempted; None: the cluster's."""


def show_qos_argv() -> list[str]:
    """Return the call that shows how each QOS preempts and is preempted."""
    return ["sacctmgr", "--noheader", "--parsable2", "show", "qos", f"format={','.join(_QOS_FIELDS)}"]


def parse_show_qos(output: str) -> list[dict[str, str]]:
    """Return the fields of each QOS in sacctmgr's output."""
    return _rows(output, _QOS_FIELDS)


def qos_of(fields: Mapping[str, str]) -> Qos:
    """Return what one row of ``sacctmgr show qos`` says."""
    mode = fields.get("PreemptMode", "").lower()
    return Qos(
        name=fields.get("Name", ""),
        preempt_mode=None if mode in ("", "cluster") else preempt_mode_of(mode),
        grace_s=duration_s(fields.get("GraceTime", "")),
        preempts=_names(fields.get("Preempt", "")),
        preempts_within=preempts_within(mode),
        exempt_s=duration_s(fields.get("PreemptExemptTime", "")),
    )


def associations_argv(user: str) -> list[str]:
    """Return the call that shows with which accounts and QOS a user may submit."""
    form = f"format={','.join(_ASSOCIATION_FIELDS)}"
    return ["sacctmgr", "--noheader", "--parsable2", "show", "user", f"name={user}", "withassoc", form]


def parse_associations(output: str) -> list[dict[str, str]]:
    """Return the fields of each association in sacctmgr's output."""
    return _rows(output, _ASSOCIATION_FIELDS)


def default_qos(associations: Sequence[Mapping[str, str]], *, cluster: str, account: str | None, partition: str) -> str:
    """Return the QOS of a job that asks for none, as slurmctld chooses it.

    The default of its association; else the only one allowed there; else ``normal``. An association with the job's
    partition goes before one without. Seen on 22.05: the association's default, and ``normal``; the rest was not tried.

    Args:
        associations: The user's, as ``parse_associations`` returns them.
        cluster: Name of the cluster.
        account: The job's; None for the user's default.
        partition: The job's.
    """
    mine = [
        each
        for each in associations
        if each["Cluster"] == cluster
        and each["Account"] == (account or each["DefaultAccount"])
        and each["Partition"] in ("", partition)
    ]
    if not mine:
        return USUAL_QOS
    own = max(mine, key=lambda each: bool(each["Partition"]))
    allowed = _names(own["QOS"])
    return own["DefaultQOS"] or (allowed[0] if len(allowed) == 1 else USUAL_QOS)


def _rows(output: str, fields: Sequence[str]) -> list[dict[str, str]]:
    rows = (line.split("|") for line in output.splitlines())
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)
