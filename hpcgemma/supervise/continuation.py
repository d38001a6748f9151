"""Going on in another job: a successor submitted from inside, or this job requeued."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol

from hpcgemma.errors import SchedulerError
from hpcgemma.plan import Plan
from hpcgemma.render import warning_signal
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.lead import warning_lead_s
from hpcgemma.runs.measurement import need_of
from hpcgemma.runs.store import job_ids
from hpcgemma.runs.tracking import link_pickle
from hpcgemma.slurm.client import OrderRefused, SlurmClient
from hpcgemma.slurm.submission import submit_once
from hpcgemma.supervise.allocation import Allocation

LOCAL_REQUEUE_CODE = 144
"""Exit code on which submitit's local controller starts its task again (submitit/local/local.py)."""


@dataclass(frozen=True, slots=True)
class Continued:
    """How the run goes on."""

    by: str
    job_id: str
    lead_s: int | None = None
    """Seconds before its time limit at which the job is warned; None: as before."""


class Continuation(Protocol):
    """A way of going on."""

    def go_on(self) -> Continued:
        """Arrange that the run goes on.

        Raises:
            SchedulerError: The scheduler refused or did not answer.
        """


class Successor:
    """sbatch from inside, with ``--dependency=afterany`` on this job: it starts when the nodes are free.

    submitit's worker looks for the pickle of its own job id, so the successor's is linked to this one's. When it is to
    be warned follows from what this run's saves took.
    """

    def __init__(self, plan: Plan, folder: RunFolder, allocation: Allocation, client: SlurmClient) -> None:
        self._plan, self._folder, self._allocation, self._client = plan, folder, allocation, client
        self._lead_s = warning_lead_s(need_of(folder), assumed_s=plan.signal_lead_s, walltime_min=plan.walltime_min)

    def go_on(self) -> Continued:
        """See Continuation."""
        own = self._allocation.job_id
        job_id = submit_once(
            self._client,
            self._folder.script_file,
            comment=self._plan.comment,
            dependency=own,
            signal=warning_signal(self._plan, self._lead_s),
            known={own, *job_ids(self._folder)},
        )
        try:
            link_pickle(self._folder, self._folder.submitit_dir / f"{own}_submitted.pkl", job_id)
        except OSError as error:
            self._client.cancel([job_id])
            raise SchedulerError(f"successor {job_id} could not be given its task: {error}", "") from error
        return Continued("successor", job_id, self._lead_s)


class Requeue:
    """``scontrol requeue`` of this job: it keeps its id, and waits about two minutes (cred_expire + 1 s)."""

    def __init__(self, allocation: Allocation, client: SlurmClient) -> None:
        self._allocation, self._client = allocation, client

    def go_on(self) -> Continued:
        """See Continuation. Slurm then sends SIGTERM, and SIGKILL after KillWait: everything is saved by now."""
        self._client.requeue(self._allocation.job_id)
        return Continued("requeue", self._allocation.job_id)


class LocalRestart:
    """submitit's local controller starts the supervisor again, in the same job."""

    def __init__(self, allocation: Allocation) -> None:
        self._allocation = allocation

    def go_on(self) -> Continued:
        """See Continuation; `leave` is what makes it happen."""
        return Continued("requeue", self._allocation.job_id)

    @staticmethod
    def leave() -> None:
        """End this process with the code that asks the controller for another start."""
        sys.exit(LOCAL_REQUEUE_CODE)


def continuation_of(plan: Plan, folder: RunFolder, allocation: Allocation, client: SlurmClient) -> Continuation:
    """Return the way of going on that the profile chose."""
    if not allocation.on_slurm:
        return LocalRestart(allocation)
    if plan.continue_by == "requeue":
        return Requeue(allocation, client)
    return Successor(plan, folder, allocation, client)


def go_on(continuation: Continuation, fallback: Continuation | None) -> Continued:
    """Go on in the chosen way, or in the other one where the site forbids the first.

    A requeue of which no answer came may have been done: then a successor would be one job too many.

    Raises:
        SubmitRefused: Slurm refused both, a submission first.
        OrderRefused: Slurm refused both, the requeue first.
        SchedulerError: Slurm did not answer.
    """
    try:
        return continuation.go_on()
    except SchedulerError as first:
        may_be_done = isinstance(continuation, Requeue) and not isinstance(first, OrderRefused)
        if fallback is None or may_be_done:
            raise
        try:
            return fallback.go_on()
        except SchedulerError as second:
            raise type(first)(f"{first.problem}; and {second.problem}", first.hint) from second
