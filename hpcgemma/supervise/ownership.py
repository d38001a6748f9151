"""Whether another job still works on a run, before this one does: by the scheduler's word, or its process's."""

from __future__ import annotations

import os
import time

from hpcgemma.errors import SchedulerError
from hpcgemma.processes import boot_id, process_start_ticks
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.lock import PERIOD_S, Claim, Holder, RunLock
from hpcgemma.runs.store import RunEntry
from hpcgemma.runs.tracking import is_own_job
from hpcgemma.slurm import reasons
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.records import JobDetails
from hpcgemma.supervise.allocation import Allocation

_WATCHED_S = 6 * PERIOD_S
"""Seconds without a sign of life after which a holder is gone that nobody can be asked about."""
_ENDING_FOR_S = 120
"""Seconds that a job may be COMPLETING; then its signs of life tell."""
_QUESTIONS = 3
_BETWEEN_QUESTIONS_S = 1.0


def take_run(folder: RunFolder, entry: RunEntry, allocation: Allocation, client: SlurmClient) -> RunLock:
    """Take the lock of a run for this job.

    Raises:
        LockHeldError: Another job works on it.
    """
    judge = Judge(entry, allocation, client)
    return RunLock.take(folder, holder_here(allocation), judge.is_over)


def holder_here(allocation: Allocation) -> Holder:
    """Return this process as a holder."""
    return Holder(
        job_id=allocation.job_id,
        on_slurm=allocation.on_slurm,
        restarts=allocation.restarts,
        host=allocation.host,
        pid=os.getpid(),
        start_ticks=process_start_ticks(os.getpid()),
        boot=boot_id(),
    )


class Judge:
    """Tells whether the holder of a run's lock is gone.

    Args:
        entry: The run.
        allocation: The job that asks.
        client: Asks Slurm.
    """

    def __init__(self, entry: RunEntry, allocation: Allocation, client: SlurmClient) -> None:
        self._entry, self._allocation, self._client = entry, allocation, client

    def is_over(self, claim: Claim) -> bool:
        """Return whether the holder of a claim is gone.

        An earlier start of the asking job is: Slurm starts a job again once it has ended. If a node was merely cut off
        and its supervisor lives on, that one finds the lock taken and ends itself.
        """
        holder, mine = claim.holder, self._allocation
        if holder is None:
            return _stands_still(claim)
        is_here = holder.host == mine.host
        if not holder.on_slurm:
            return _is_gone(holder) if is_here else _stands_still(claim)
        if mine.on_slurm and holder.job_id == mine.job_id:
            return not is_here or holder.restarts != mine.restarts or _is_gone(holder)
        return self._is_over_for_slurm(claim, holder)

    def _is_over_for_slurm(self, claim: Claim, holder: Holder) -> bool:
        ending_until = time.monotonic() + _ENDING_FOR_S
        unanswered = 0
        while unanswered < _QUESTIONS and time.monotonic() < ending_until:
            try:
                ended = has_ended(self._client.show_job(holder.job_id), holder, self._entry)
            except SchedulerError:
                unanswered += 1
            else:
                if ended is not None:
                    return ended
            time.sleep(_BETWEEN_QUESTIONS_S)
        return _stands_still(claim)


def has_ended(details: JobDetails | None, holder: Holder, entry: RunEntry) -> bool | None:
    """Return whether the start of a job that held the lock has ended, or None while it is ending.

    Args:
        details: What the controller says of the job; None: it has forgotten it.
        holder: The holder.
        entry: The run; a job that is not the run's has been given an old number.
    """
    if details is None or not is_own_job(entry, details.record):
        return True
    job = details.record
    if reasons.is_final(job.state) or reasons.is_pending(job.state):
        return True
    if job.restarts is not None and job.restarts > holder.restarts and job.state != "COMPLETING":
        return True  # Slurm has started it anew
    return None if job.state == "COMPLETING" else False


def _is_gone(holder: Holder) -> bool:
    """Whether a process of this host has ended."""
    if holder.boot != boot_id():
        return True
    return holder.start_ticks is None or process_start_ticks(holder.pid) != holder.start_ticks


def _stands_still(claim: Claim) -> bool:
    """Watch a claim until its holder gives a sign of life; return whether none came, or it let go."""
    deadline = time.monotonic() + _WATCHED_S
    while time.monotonic() < deadline:
        time.sleep(_BETWEEN_QUESTIONS_S)
        now = claim.read_again()
        if now.content != claim.content:
            return now.is_released
    return True
