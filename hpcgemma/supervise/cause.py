"""Why a warning came: what Slurm says of the job, read while the ranks save."""

from __future__ import annotations

import time
from enum import StrEnum

from hpcgemma.destination import ask_destination
from hpcgemma.errors import InputError, SchedulerError
from hpcgemma.preemption import Preemption
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.records import JobDetails, JobRecord

_NEAR_END_S = 90
_CLOCK_SLACK_S = 5
_SAME_MOMENT_S = 1
"""Slurm notes whole seconds."""
_ASK_FOR_S = 3.0
_BETWEEN_QUESTIONS_S = 0.5


class WarningCause(StrEnum):
    """What a warning announces."""

    PREEMPTED = "preempted"
    TIME_LIMIT = "time limit"
    CANCELLED = "cancelled"
    REQUEUED = "requeued"
    """Somebody, or Slurm itself, has put the job back into the queue already."""
    SIGNALLED = "a signal by hand"
    """The job goes on as before: somebody sent the signal, and this allocation can be used further."""
    UNKNOWN = "not known"
    """Slurm did not say."""


def cause_of(
    details: JobDetails | None, *, lead_s: int, restarts: int, now: float, preemption: Preemption | None = None
) -> WarningCause:
    """Return what a warning means, from the job's own record.

    While its processes end, a job is COMPLETING whatever ended it, so the cause shows in other fields (seen on
    Slurm 22.05): preemption sets PreemptTime and leaves it RUNNING; a requeue counts Restarts up and takes PreemptTime
    back; scancel leaves an end before the time limit, or before the end of the grace.

    Args:
        details: `scontrol show job`; None where Slurm did not answer.
        lead_s: Seconds before the time limit at which Slurm warns; it may be up to 60 s early.
        restarts: How often the job had been requeued when this process started.
        now: Seconds since 1970.
        preemption: How the job is preempted; None where that is not known.
    """
    if details is None:
        return WarningCause.UNKNOWN
    job = details.record
    if job.state == "CANCELLED":
        return WarningCause.CANCELLED
    if is_ending_in_its_grace(details) and _ended_before_its_grace(details, preemption):
        return WarningCause.CANCELLED
    if details.preempt_time is not None or job.state == "PREEMPTED":
        return WarningCause.PREEMPTED
    if job.restarts is not None and job.restarts > restarts:
        return WarningCause.REQUEUED
    if job.state == "TIMEOUT" or job.reason == "TimeLimit":
        return WarningCause.TIME_LIMIT
    if job.state == "COMPLETING":
        return WarningCause.TIME_LIMIT if _used_up_its_time(job) else WarningCause.CANCELLED
    if job.end_time is not None and job.end_time.timestamp() - now < lead_s + _NEAR_END_S:
        return WarningCause.TIME_LIMIT
    return WarningCause.SIGNALLED if job.state == "RUNNING" and job.end_time is not None else WarningCause.UNKNOWN


def is_ending_in_its_grace(details: JobDetails) -> bool:
    """Return whether a job ends after the notice of its preemption: by that, or because it was cancelled meanwhile."""
    return details.record.state == "COMPLETING" and details.preempt_time is not None


def _ended_before_its_grace(details: JobDetails, preemption: Preemption | None) -> bool:
    """Return whether somebody else ended a preempted job, which can be only before its grace was over.

    Where Slurm cancels a preempted job and does not requeue it, it moves PreemptTime to the end of the job (22.05).
    """
    noticed, end = details.preempt_time, details.record.end_time
    if noticed is None or end is None or preemption is None or preemption.grace_s is None:
        return False
    used_s = (end - noticed).total_seconds()
    is_requeued = preemption.mode == "requeue" and details.requeue is not False
    if used_s <= _SAME_MOMENT_S and not is_requeued:
        return False
    return used_s < preemption.grace_s - _CLOCK_SLACK_S


def _used_up_its_time(job: JobRecord) -> bool:
    if job.start_time is None or job.end_time is None or job.time_limit_min is None:
        return False
    return (job.end_time - job.start_time).total_seconds() >= job.time_limit_min * 60 - _CLOCK_SLACK_S


def ask_cause(client: SlurmClient, job_id: str, *, lead_s: int, restarts: int) -> WarningCause:
    """Ask Slurm why this job was warned; no answer is no failure.

    Asked again where the question itself was ended: with proctrack/linuxproc, Slurm's SIGTERM meets every process of
    the batch step, scontrol too.
    """
    details, preemption = None, None
    deadline = time.monotonic() + _ASK_FOR_S
    while True:
        try:
            details = client.show_job(job_id)
            if details is not None and is_ending_in_its_grace(details):
                preemption = _preemption(client, details.record)
            break
        except SchedulerError:
            if time.monotonic() > deadline:
                break
            time.sleep(_BETWEEN_QUESTIONS_S)
    return cause_of(details, lead_s=lead_s, restarts=restarts, now=time.time(), preemption=preemption)


def _preemption(client: SlurmClient, job: JobRecord) -> Preemption | None:
    """Return how a job is preempted; None where its partition or its QOS is no longer there."""
    try:
        return ask_destination(client, job.partition or None, job.qos or None, job.account or None).preemption
    except InputError:
        return None
