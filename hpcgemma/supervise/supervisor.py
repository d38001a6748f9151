"""The supervisor: the callable that submitit submits. It makes one run go on until it is finished."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

from hpcgemma.errors import SchedulerError
from hpcgemma.plan import Plan
from hpcgemma.runs import store
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.lead import lead_of
from hpcgemma.runs.lock import LockHeldError, LockLostError, RunLock
from hpcgemma.runs.state import current_job_id, is_superseded
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.refusals import SubmitRefused
from hpcgemma.supervise import continuation as ways
from hpcgemma.supervise.allocation import Allocation, read_allocation
from hpcgemma.supervise.attempt import Attempt
from hpcgemma.supervise.cause import WarningCause, ask_cause
from hpcgemma.supervise.chain import Chain
from hpcgemma.supervise.endings import (
    WARNED_ENDINGS,
    Ending,
    NextMove,
    attempts_without_progress,
    next_move,
)
from hpcgemma.supervise.ownership import take_run
from hpcgemma.supervise.sick_nodes import SickNodes
from hpcgemma.supervise.signals import WarningFlags

_INSIDE_TIMEOUT_S = 20
"""Seconds for a Slurm command inside the job, where the time to save is short."""
_INSIDE_ACCOUNTING_TIMEOUT_S = 2
"""The same for sacctmgr, which is asked when the grace is used up: KillWait may leave 5 s to submit the next job in."""
_OWN_SUBMISSION_WAIT_S = 30
_TRY_TO_GO_ON_S = 1800
_BETWEEN_TRIES_S = 5


def supervise(run_folder: str) -> str:
    """Run a run's training in this allocation; what submitit's worker calls.

    Args:
        run_folder: Path of the run folder.

    Returns:
        The last move, for submitit's result file.

    Raises:
        SystemExit: The run failed (code 1), or the local controller is to start it again.
    """
    folder = RunFolder(Path(run_folder))
    plan = Plan.from_mapping(store.read_run_file(folder)["plan"])
    flags = WarningFlags(plan.signal)
    flags.install()
    return Supervisor(plan, folder, read_allocation(os.environ), flags).run()


class Supervisor:
    """Attempt after attempt in one allocation, and the way on from it.

    Args:
        plan: What runs.
        folder: The run folder.
        allocation: Where it runs.
        flags: The signals that this process receives.
    """

    def __init__(self, plan: Plan, folder: RunFolder, allocation: Allocation, flags: WarningFlags) -> None:
        self.plan, self.folder, self.allocation, self.flags = plan, folder, allocation, flags
        self.client = SlurmClient(timeout_s=_INSIDE_TIMEOUT_S, accounting_timeout_s=_INSIDE_ACCOUNTING_TIMEOUT_S)
        self._chain = Chain(plan, folder, allocation, self.client)
        self._sick_nodes = SickNodes(plan, folder, allocation, self.client)
        self.cause: WarningCause | None = None
        self._continued: ways.Continued | None = None
        self._attempt = 0
        self._lock: RunLock | None = None

    def run(self) -> str:
        """Go through attempts until the run is finished, goes on elsewhere, or is given up."""
        if self._is_superseded():
            return self._leave_alone()
        entry = store.entry_of(self.folder)
        try:
            self._lock = take_run(self.folder, entry, self.allocation, self.client)
        except LockHeldError as error:
            self.folder.record("refused", job_id=self.allocation.job_id, sentence=error.problem)
            self._say(f"{error.problem}. {error.hint}")
            sys.exit(error.exit_code)
        try:
            if self._is_superseded():  # perhaps it took a while
                return self._leave_alone()
            store.note_job(entry, self.allocation.job_id)
            lead_s = lead_of(self._events(), self.allocation.job_id, self.plan.signal_lead_s)
            self.plan = dataclasses.replace(self.plan, signal_lead_s=lead_s)
            if not self._chain.take_turn():
                self._take_back_jobs()
                return self._leave_alone()
            if queued := self._chain.queue_ahead(self._without):
                self._say(queued)
            return self._run()
        except LockLostError as error:
            self._say(error.problem)
            return "superseded"
        finally:
            self._lock.release()

    def _leave_alone(self) -> str:
        self._say("another job goes on with this run, or it is over: nothing to do here")
        return "superseded"

    def _run(self) -> str:
        while True:
            self._attempt = number = self.folder.last_attempt() + 1
            self.folder.attempt_dir(number).mkdir(parents=True)
            self._say(f"attempt {number} on {self.allocation.node_list}: {self.plan.world_size} ranks")
            ending = Attempt(
                self.plan,
                self.folder,
                self.allocation,
                number,
                self.flags,
                on_warning=self._warning_passed_on,
                on_watch=self._show_life,
            ).run()
            move = self._conclude(number, ending)
            if move is NextMove.RELAUNCH and self._continued is not None:
                move = NextMove.CONTINUE  # a successor has taken over; this job may not touch the run again
            if move is not NextMove.RELAUNCH:
                return self._leave(move, ending)
            if ending.kind in WARNED_ENDINGS:  # a warning that came since then is still to be dealt with
                self.cause = None
                self.flags.forget()
            self.folder.record("relaunched", attempt=number + 1, job_id=self.allocation.job_id)

    def _show_life(self) -> None:
        if self._lock is not None:
            self._lock.beat(self._attempt)

    def _is_superseded(self) -> bool:
        """Whether this job must not touch the run: another took over, or the run is over.

        The launcher records its submission a moment after sbatch answered, so a job of which nothing is known
        waits a little for that line.
        """
        deadline = time.monotonic() + _OWN_SUBMISSION_WAIT_S
        while True:
            events = self._events()
            superseded = is_superseded(events, self.allocation.job_id)
            if superseded is not None:
                return superseded
            if time.monotonic() > deadline:
                return current_job_id(events) is not None
            time.sleep(0.2)

    def _warning_passed_on(self) -> None:
        """Note the warning and its cause; where Slurm is about to kill, arrange at once that the run goes on."""
        self.cause = self._ask_cause()
        self.folder.record("warned", job_id=self.allocation.job_id, signal=self.flags.warned, cause=self.cause.value)
        self._say(f"{self.flags.warned} came ({self.cause.value}): the ranks save")
        final_notice = self.flags.terminated_at is not None and self.allocation.on_slurm
        by_requeue = self.plan.continue_by == "requeue"
        if final_notice and not by_requeue and self._may_continue() and not self._chain.is_used_up(self.cause):
            try:
                self._go_on(may_requeue=False)  # that would cut the save short
            except SchedulerError as error:
                self._say(f"{error.problem}; trying again after the save")

    def _ask_cause(self) -> WarningCause:
        if not self.allocation.on_slurm:
            stopped = self.flags.terminated_at is not None or self.flags.warned == "SIGINT"
            return WarningCause.CANCELLED if stopped else WarningCause.UNKNOWN
        return ask_cause(
            self.client,
            self.allocation.job_id,
            lead_s=self.plan.signal_lead_s,
            restarts=self.allocation.restarts,
        )

    def _conclude(self, number: int, ending: Ending) -> NextMove:
        was_warned = ending.kind in WARNED_ENDINGS
        if was_warned and self.cause in (None, WarningCause.SIGNALLED):
            # The warning went to the ranks only, as at preemption; or they were done before it was passed on; or
            # another one may have come since.
            self.cause = self._ask_cause()
        elif was_warned and self.cause is not WarningCause.CANCELLED and self._ask_cause() is WarningCause.CANCELLED:
            self.cause = WarningCause.CANCELLED  # by scancel, while the ranks saved
        facts: dict[str, Any] = {"cause": self.cause.value} if was_warned and self.cause else {}
        self.folder.record(
            "ended",
            attempt=number,
            job_id=self.allocation.job_id,
            ending=ending.kind.value,
            sentence=ending.sentence,
            hint=ending.hint,
            step=ending.step,
            rank=ending.rank,
            node=self._sick_nodes.node_of(ending),
            **facts,
        )
        self._say(f"attempt {number} ended: {ending.sentence}")
        leaves_node, said = self._sick_nodes.judge(ending, number)
        for sentence in said:
            self._say(sentence)
        events = self._events()
        return next_move(
            ending,
            without_progress=attempts_without_progress(events),
            max_relaunches=self.plan.max_relaunches,
            cancelled=not self._may_continue(),
            keeps_allocation=self.cause is WarningCause.SIGNALLED and self._continued is None,
            leaves_node=leaves_node,
        )

    def _may_continue(self) -> bool:
        """Whether the user has not asked for the end, through hpcgemma or through scancel."""
        return self.cause is not WarningCause.CANCELLED and not self._is_cancelled_here()

    def _is_cancelled_here(self) -> bool:
        last = [e["event"] for e in self._events() if e.get("event") in ("submitted", "cancelled")]
        return last[-1:] == ["cancelled"]

    def _go_on(self, *, may_requeue: bool = True) -> None:
        if self._continued is not None:
            return
        if self.cause is WarningCause.REQUEUED:
            self._note_continued(ways.Continued("requeue", self.allocation.job_id))
            return
        without = self._without()
        if (link := self._chain.next_link()) is not None:
            self._note_continued(ways.Continued("link", link, without=self._chain.keep_from(without)))
            return
        way = ways.continuation_of(self.plan, self.folder, self.allocation, self.client, without)
        fallback: ways.Continuation | None = None
        if isinstance(way, ways.Requeue):
            fallback = ways.Successor(self.plan, self.folder, self.allocation, self.client, without)
        elif isinstance(way, ways.Successor) and may_requeue:
            fallback = ways.Requeue(self.allocation, self.client, without)
        self._note_continued(ways.go_on(way, fallback))

    def _without(self) -> list[str]:
        """Return the nodes that the next job is not to have."""
        nodes, caution = self._sick_nodes.without()
        if caution:
            self._say(caution)
        return nodes

    def _go_on_at_last(self, ending: Ending) -> None:
        """Go on, and while Slurm is silent try again: a job that is killed while it waits, Slurm itself requeues."""
        deadline = time.monotonic() + _TRY_TO_GO_ON_S
        while True:
            try:
                return self._go_on()
            except SchedulerError as error:
                if isinstance(error, SubmitRefused) or time.monotonic() > deadline:
                    self._fail(f"{ending.sentence}, but it could not go on by itself: {error.problem}", error.hint)
                self._say(f"{error.problem}; trying again")
                self._show_life()
                time.sleep(_BETWEEN_TRIES_S)

    def _note_continued(self, continued: ways.Continued) -> None:
        self._continued = continued
        facts: dict[str, Any] = {} if continued.lead_s is None else {"lead_s": continued.lead_s}
        if continued.without:
            facts["without"] = list(continued.without)
        self.folder.record("continued", by=continued.by, job_id=continued.job_id, **facts)
        store.note_job(store.entry_of(self.folder), continued.job_id)
        without = f", without {', '.join(continued.without)}" if continued.without else ""
        self._say(f"the run goes on in job {continued.job_id} ({continued.by}){without}")

    def _leave(self, move: NextMove, ending: Ending) -> str:
        match move:
            case NextMove.FINISH:
                self.folder.record("finished", step=ending.step, job_id=self.allocation.job_id)
                self._take_back_jobs()
            case NextMove.CONTINUE if self._continued is None and self._chain.is_used_up(self.cause):
                links = self._chain.wanted
                self.folder.record("chain_ended", links=links, job_id=self.allocation.job_id)
                self._say(f"the last of {links} links ended before the run was finished: hpcgemma resume goes on")
            case NextMove.CONTINUE:
                self._go_on_at_last(ending)
                if not self.allocation.on_slurm:
                    ways.LocalRestart.leave()
            case NextMove.GIVE_UP:
                count = attempts_without_progress(self._events())
                again = (
                    f"; {count} attempts in a row made no new checkpoint" if count > self.plan.max_relaunches else ""
                )
                self._fail(ending.sentence + again, ending.hint)
            case _:
                self._take_back_jobs()
                if self.allocation.on_slurm and not self._is_cancelled_here():
                    self.folder.record("cancelled", job_id=self.allocation.job_id, by="scancel")
                self._say("cancelled: it does not go on by itself")
        return move.value

    def _take_back_jobs(self) -> None:
        if problem := self._chain.take_back(self._continued):
            self._say(problem)

    def _fail(self, sentence: str, hint: str) -> None:
        name = self.plan.run_name
        self._take_back_jobs()
        hint = hint or f"hpcgemma logs {name}; when mended: hpcgemma resume {name}"
        self.folder.record("failed", sentence=sentence, hint=hint, job_id=self.allocation.job_id)
        self._say(f"failed: {sentence}")
        sys.exit(1)

    def _events(self) -> list[dict[str, Any]]:
        return self.folder.events()

    def _say(self, sentence: str) -> None:
        line = f"hpcgemma {time.strftime('%H:%M:%S')} {sentence}"
        with contextlib.suppress(OSError):  # a full disk costs the line, not the run
            print(line, flush=True)
        if self._attempt:
            with (
                contextlib.suppress(OSError),
                self.folder.supervisor_log(self._attempt).open("a", encoding="utf-8") as log,
            ):
                log.write(line + "\n")
