"""The jobs that wait ahead for a run, as the job sees them that works on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hpcgemma.errors import SchedulerError
from hpcgemma.plan import Plan
from hpcgemma.runs import store
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.state import current_job_id, job_before, waiting_links, wanted_links
from hpcgemma.slurm import reasons
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.supervise.allocation import Allocation
from hpcgemma.supervise.cause import WarningCause
from hpcgemma.supervise.continuation import Continued, Successor, keep_from


class Chain:
    """The links of a run: taken over from, added to, handed over to, and taken back.

    Args:
        plan: What runs.
        folder: The run folder.
        allocation: Where it runs; without Slurm there are no links.
        client: Runs Slurm's commands.
    """

    def __init__(self, plan: Plan, folder: RunFolder, allocation: Allocation, client: SlurmClient) -> None:
        self._plan, self._folder, self._allocation, self._client = plan, folder, allocation, client

    def take_turn(self) -> bool:
        """Take over from the job before, also where this one was queued ahead and that one could not hand over.

        Returns:
            Whether the run goes on: not where the job before was ended by scancel, and could not say that any more.
        """
        events = self._events()
        before = job_before(events, self._allocation.job_id)
        if before is None or not self._allocation.on_slurm:
            return True
        try:
            ended = self._client.jobs([before]).get(before)
        except SchedulerError:
            ended = None
        if ended is not None and ended.state == "CANCELLED":
            self._folder.record("cancelled", job_id=before, by="scancel")
            return False
        if current_job_id(events) != self._allocation.job_id:
            self._folder.record("continued", by="link", job_id=self._allocation.job_id)
        return True

    def queue_ahead(self, without: Callable[[], Sequence[str]] = tuple) -> str:
        """Queue the next job at once, where one is always to wait: this one may be ended without any notice.

        Args:
            without: Tells which nodes it is not to have.

        Returns:
            What was done, as a sentence; empty where nothing was to do.
        """
        events = self._events()
        wanted = self._allocation.on_slurm and self._plan.continue_by == "chain"
        if not wanted or wanted_links(events) or waiting_links(events):
            return ""
        try:
            ahead = Successor(self._plan, self._folder, self._allocation, self._client, without()).go_on()
        except SchedulerError as error:
            return f"no job could be queued ahead: {error.problem}"
        self._folder.record("linked", job_id=ahead.job_id, lead_s=ahead.lead_s)
        store.note_job(store.entry_of(self._folder), ahead.job_id)
        return f"job {ahead.job_id} waits ahead"

    def next_link(self) -> str | None:
        """Return the job that goes on when this one ends; None where none waits.

        While Slurm is silent the first that was queued is taken to be there: it starts without anybody's help.
        """
        waiting = waiting_links(self._events())
        if not waiting or not self._allocation.on_slurm:
            return None
        try:
            known = self._client.jobs(waiting)
        except SchedulerError:
            return waiting[0]
        return next((each for each in waiting if each in known and not reasons.is_final(known[each].state)), None)

    def keep_from(self, nodes: Sequence[str]) -> tuple[str, ...]:
        """Keep all links that wait from nodes, and return those that the next one is kept from."""
        kept = [keep_from(self._client, link, nodes) for link in waiting_links(self._events())]
        return kept[0] if kept else ()

    def is_used_up(self, cause: WarningCause | None) -> bool:
        """Return whether the run has had all the jobs it is to have; one that was merely preempted has time left."""
        at_limit = cause is WarningCause.TIME_LIMIT and self.wanted > 0
        return at_limit and self.next_link() is None

    @property
    def wanted(self) -> int:
        """Jobs that the run is to have; 0: as many as it takes."""
        return wanted_links(self._events())

    def take_back(self, continued: Continued | None) -> str:
        """Cancel the jobs that wait, and a successor that a last-minute notice called for.

        Returns:
            Why that failed, upon which each ends itself at its start; empty where it worked.
        """
        if not self._allocation.on_slurm:
            return ""
        waiting = waiting_links(self._events())
        if continued is not None and continued.by in ("successor", "link"):
            waiting.append(continued.job_id)
        try:
            self._client.cancel(waiting)
        except SchedulerError as error:
            return error.problem
        return ""

    def _events(self) -> list[dict[str, Any]]:
        return self._folder.events()
