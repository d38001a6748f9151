"""Why a warning came: what Slurm says of the job, read while the ranks save."""

from __future__ import annotations

import time
from enum import StrEnum

from hpcgemma.errors import SchedulerError
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.records import JobDetails

_NEAR_END_S = 90


class WarningCause(StrEnum):
    """What a warning announces."""

    PREEMPTED = "preempted"
    TIME_LIMIT = "time limit"
    CANCELLED = "cancelled"
    UNKNOWN = "a warning signal"


def cause_of(details: JobDetails | None, *, lead_s: int, now: float) -> WarningCause:
    """Return what a warning means, from the job's own record.

    Args:
        details: `scontrol show job`; None where Slurm did not answer.
        lead_s: Seconds before the time limit at which Slurm warns; it may be up to 60 s early.
        now: Seconds since 1970.
    """
    if details is None:
        return WarningCause.UNKNOWN
    if details.record.state == "CANCELLED":
        return WarningCause.CANCELLED
    if details.preempt_time is not None or details.record.state == "PREEMPTED":
        return WarningCause.PREEMPTED
    if details.record.state == "TIMEOUT":
        return WarningCause.TIME_LIMIT
    end = details.record.end_time
    if end is not None and end.timestamp() - now < lead_s + _NEAR_END_S:
        return WarningCause.TIME_LIMIT
    return WarningCause.UNKNOWN


def ask_cause(client: SlurmClient, job_id: str, lead_s: int) -> WarningCause:
    """Ask Slurm why this job was warned; no answer is no failure."""
    try:
        details = client.show_job(job_id)
    except SchedulerError:
        details = None
    return cause_of(details, lead_s=lead_s, now=time.time())
