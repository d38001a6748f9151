"""What a cluster does to jobs, read from its configuration. Pure; unknown is None or empty, never a guess."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hpcgemma.slurm.values import duration_min, duration_s, leading_int

PreemptMode = Literal["off", "requeue", "cancel", "suspend", "unknown"]
"""What becomes of a preempted job; off: it is not preempted."""

_CRED_EXPIRE_S = 120
"""Slurm's own lifetime of a job credential (src/slurmctld/controller.c); a requeued job waits one second longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What holds for all jobs of a cluster: ``scontrol show config``."""

    cluster: str
    """ClusterName."""
    version: str
    """Slurm's, as 22.05.8."""
    job_requeue: bool | None
    """JobRequeue: whether jobs are requeued that do not say; before 25.11 lost nodes need it, whatever they say."""
    preempt_by: Literal["none", "partition", "qos", "unknown"]
    """PreemptType: what decides which job is preempted."""
    preempt_mode: PreemptMode
    """PreemptMode where neither partition nor QOS has one."""
    preempts_within: bool
    """PreemptMode has WITHIN: under preempt/qos, jobs of one QOS preempt each other."""
    exempt_s: int
    """PreemptExemptTime: seconds of a job in which it is not preempted, where its QOS has none of its own."""
    kill_wait_s: int | None
    """KillWait: seconds from SIGTERM to SIGKILL."""
    slurmd_timeout_s: int | None
    """SlurmdTimeout: seconds of silence after which a node is given up."""
    min_job_age_s: int | None
    """MinJobAge: seconds for which squeue knows an ended job."""
    sends_user_signal: bool
    """Whether a preempted job gets the signal that it asked for, in the place of SIGTERM."""
    proctrack: str
    """ProctrackType without its prefix; cgroup signals a step's own processes only, linuxproc all descendants."""
    has_accounting: bool | None
    """Whether sacct knows ended jobs."""
    requeue_wait_s: int
    """Seconds that a requeued job waits: the lifetime of its credential, and one."""

    @property
    def requeues_after_node_failure(self) -> bool | None:
        """Whether a job that says ``--requeue`` comes back when its node is lost."""
        return True if _release(self.version) >= (25, 11) else self.job_requeue


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """What holds for the jobs of one partition: ``scontrol show partition``."""

    name: str
    is_default: bool
    preempt_mode: PreemptMode
    grace_s: int | None
    """GraceTime: seconds from the notice of a preemption to the end; 0: none, but for KillWait."""
    max_time_min: int | None
    """None if unlimited or not told."""
    priority_tier: int
    """Under preempt/partition_prio, jobs of a higher tier preempt."""
    nodes: str | None
    """As Slurm writes them, ``node[1-4]``; empty: it has none; None: not told."""
    takes_jobs_from_nodes: bool
    """AllocNodes is ALL: a job may submit another one from inside."""
    is_up: bool


def site_of(config: Mapping[str, str]) -> Site:
    """Return what the pairs of ``scontrol show config`` say."""
    words = f"{config.get('SlurmctldParameters', '')},{config.get('PreemptParameters', '')}"
    expire = re.search(r"cred_expire=(\d+)", config.get("AuthInfo", ""))
    storage = config.get("AccountingStorageType")
    return Site(
        cluster=config.get("ClusterName", ""),
        version=config.get("SLURM_VERSION", ""),
        job_requeue={"0": False, "1": True}.get(config.get("JobRequeue", "")),
        preempt_by=_preempt_by(config.get("PreemptType")),
        preempt_mode=preempt_mode_of(config.get("PreemptMode", "")),
        preempts_within=preempts_within(config.get("PreemptMode", "")),
        exempt_s=duration_s(config.get("PreemptExemptTime", "")) or 0,
        kill_wait_s=leading_int(config.get("KillWait", "")),
        slurmd_timeout_s=leading_int(config.get("SlurmdTimeout", "")),
        min_job_age_s=leading_int(config.get("MinJobAge", "")),
        sends_user_signal="send_user_signal" in words,
        proctrack=config.get("ProctrackType", "").rpartition("/")[2],
        has_accounting=None if storage is None else storage not in ("", "accounting_storage/none"),
        requeue_wait_s=int(expire[1] if expire else _CRED_EXPIRE_S) + 1,
    )


def partition_of(fields: Mapping[str, str]) -> Partition:
    """Return what the pairs of one partition in ``scontrol show partition`` say."""
    return Partition(
        name=fields.get("PartitionName", ""),
        is_default=fields.get("Default") == "YES",
        preempt_mode=preempt_mode_of(fields.get("PreemptMode", "")),
        grace_s=leading_int(fields.get("GraceTime", "")),
        max_time_min=duration_min(fields.get("MaxTime", "")),
        priority_tier=leading_int(fields.get("PriorityTier", "")) or 0,
        nodes=fields.get("Nodes"),
        takes_jobs_from_nodes=fields.get("AllocNodes", "ALL") in ("ALL", ""),
        is_up=fields.get("State", "UP") == "UP",
    )


def preempt_mode_of(text: str) -> PreemptMode:
    """Return what Slurm's word means; GANG and WITHIN, which may stand beside it, do not matter here.

    WITHIN alone is off: a job of such a QOS was never preempted (22.05).
    """
    words = set(text.lower().split(","))
    known: tuple[PreemptMode, ...] = ("requeue", "cancel", "suspend", "off")
    return next((mode for mode in known if mode in words), "off" if words == {"within"} else "unknown")


def preempts_within(text: str) -> bool:
    """Return whether a PreemptMode lets jobs of one QOS preempt each other."""
    return "within" in text.lower().split(",")


def _preempt_by(text: str | None) -> Literal["none", "partition", "qos", "unknown"]:
    known: dict[str | None, Literal["none", "partition", "qos"]] = {
        "preempt/none": "none",
        "": "none",  # as Slurm prints it from 23.11 on, where it has become (null)
        "preempt/partition_prio": "partition",
        "preempt/qos": "qos",
    }
    return known.get(text, "unknown")


def _release(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)
