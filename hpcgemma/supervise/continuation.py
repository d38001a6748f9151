"""Going on in another job: a successor submitted from inside, or this job requeued."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
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
_KEEP_FROM_S = 10.0
"""Tried so long: with proctrack/linuxproc Slurm's SIGTERM meets the command itself too."""
_BETWEEN_TRIES_S = 0.5


@dataclass(frozen=True, slots=True)
class Continued:
    """How the run goes on."""

    by: str
    job_id: str
    lead_s: int | None = None
    """Seconds before its time limit at which the job is warned; None: as before."""
    without: tuple[str, ...] = ()
    """Nodes that it is kept from."""


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

    def __init__(
        self, plan: Plan, folder: RunFolder, allocation: Allocation, client: SlurmClient, without: Sequence[str] = ()
    ) -> None:
        self._plan, self._folder, self._allocation, self._client = plan, folder, allocation, client
        self._without = without
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
            exclude=self._without,
            known={own, *job_ids(self._folder)},
        )
        try:
            link_pickle(self._folder, self._folder.submitit_dir / f"{own}_submitted.pkl", job_id)
        except OSError as error:
            self._client.cancel([job_id])
            raise SchedulerError(f"successor {job_id} could not be given its task: {error}", "") from error
        return Continued("successor", job_id, self._lead_s, tuple(self._without))


class Requeue:
    """``scontrol requeue`` of this job: it keeps its id, and waits about two minutes (cred_expire + 1 s).

    Which nodes it is not to have can be said only once it is requeued, and is, before Slurm has ended this process.
    """

    def __init__(self, allocation: Allocation, client: SlurmClient, without: Sequence[str] = ()) -> None:
        self._allocation, self._client, self._without = allocation, client, without

    def go_on(self) -> Continued:
        """See Continuation. Slurm then sends SIGTERM, and SIGKILL after KillWait: everything is saved by now."""
        own = self._allocation.job_id
        self._client.requeue(own)
        return Continued("requeue", own, without=keep_from(self._client, own, self._without))


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


def continuation_of(
    plan: Plan, folder: RunFolder, allocation: Allocation, client: SlurmClient, without: Sequence[str]
) -> Continuation:
    """Return the way of going on that the profile chose, without some nodes."""
    if not allocation.on_slurm:
        return LocalRestart(allocation)
    if plan.continue_by == "requeue":
        return Requeue(allocation, client, without)
    return Successor(plan, folder, allocation, client, without)


def keep_from(client: SlurmClient, job_id: str, nodes: Sequence[str]) -> tuple[str, ...]:
    """Keep a job that waits from nodes, and return those that it is kept from; that this fails is no failure."""
    deadline = time.monotonic() + _KEEP_FROM_S
    while nodes:
        try:
            client.exclude_nodes(job_id, nodes)
            return tuple(nodes)
        except SchedulerError:
            if time.monotonic() > deadline:
                break
            time.sleep(_BETWEEN_TRIES_S)
    return ()


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
