"""A drill as it goes: waits until the run can meet an act, does it, and waits until the run is back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from hpcgemma import files
from hpcgemma.drill.acts import Act, Deed, is_ready, training_attempt
from hpcgemma.drill.outcome import Outcome, outcome_of
from hpcgemma.drill.stage import Done, Stage
from hpcgemma.errors import HpcGemmaError, SchedulerError
from hpcgemma.executors import ending
from hpcgemma.plan import Plan
from hpcgemma.runs import tracking
from hpcgemma.runs.progress import read_progress, recent_metrics
from hpcgemma.runs.state import RunState, RunStatus, current_job_id
from hpcgemma.runs.store import RunEntry
from hpcgemma.slurm import reasons
from hpcgemma.slurm.client import OrderRefused, SlurmClient

_LOOK_S = 0.5
"""Seconds between looks at the run folder, which costs the scheduler nothing."""
_LONGEST_END_S = 60.0
"""A run whose remaining steps would take longer is given fewer once the acts are done."""
_LAST_STEPS = 20
"""As many as it is given then."""
_NOTICED_S = 300.0
"""An act of which nothing came for so long, or so long after a lowered time limit, has failed."""
_TRIES = 3
"""How often an act is done until it shows something."""
_SILENT_TRIES = 5
"""How often an act is tried while Slurm does not answer, at the profile's pace."""

Show = Callable[[str], None]


class Rehearsal:
    """One drill of one run, from its first step to its end.

    Args:
        entry: The run, submitted.
        plan: Its plan.
        client: Asks Slurm.
        stage: Does the acts.
        interval: Steps between two checkpoints.
        show: Shows a person what is waited for, in words.
    """

    def __init__(
        self, entry: RunEntry, plan: Plan, client: SlurmClient, stage: Stage, *, interval: int, show: Show
    ) -> None:
        self._entry, self._plan, self._client, self._stage = entry, plan, client, stage
        self._interval, self._show = interval, show
        self._reached: dict[int, int] = {}
        self._asked_at = float("-inf")
        self._state: RunState | None = None
        self.deeds: list[Deed] = []
        """What was done so far."""
        self.end = ""
        """How the run ended, as a sentence; empty before."""

    def run(self, acts: Sequence[Act]) -> None:
        """Do acts one after the other, and let the run end.

        Raises:
            SchedulerError: Slurm did not answer for long.
        """
        for number, act in enumerate(acts, start=1):
            if not self._perform(act, f"act {number} of {len(acts)}, {act.value}"):
                break
        self._wait_for_the_end()

    def abandon(self) -> None:
        """End the run now.

        Raises:
            SchedulerError: Slurm does not answer.
        """
        ending.cancel_run(self._entry, self._client)
        self.end = "CANCELLED: it saves before it ends"

    def _perform(self, act: Act, words: str) -> bool:
        """Do an act and wait until the run is back, again where that showed nothing; False where the run is over."""
        before = len(self.deeds)
        for tries_left in reversed(range(_TRIES)):
            if not self._wait_until_ready(words):
                return False
            self._show(f"{words}: {act.intent}")
            self.deeds[before:] = [self._do(act)]
            if not self.deeds[-1].refused and not self._wait_until_back(words):
                return False
            if tries_left == 0 or not self._outcome().shows_nothing:
                break
            self._show(f"{words}: no step was lost, as a checkpoint had just been made; once more")
        return True

    def _outcome(self) -> Outcome:
        """Return what became of the last act so far."""
        folder = self._entry.folder
        metrics = list(files.read_json_lines(folder.metrics_file))
        return outcome_of(self.deeds[-1], folder.events(), metrics, interval=self._interval)

    # --- waiting ------------------------------------------------------------------------------------------------

    def _wait_until_ready(self, words: str) -> bool:
        """Wait until the next act can come; False where the run is over."""
        while True:
            events = self._look()
            if is_ready(events, self._reached, self._interval):
                return True
            if self._ask().status.is_final:
                return False
            is_training = training_attempt(events) is not None
            self._show(f"{words}: " + ("training up to the next checkpoint" if is_training else self._waiting_words()))
            time.sleep(_LOOK_S)

    def _wait_until_back(self, words: str) -> bool:
        """Wait until a later attempt takes steps, and resume the run where nobody goes on with it; False: in vain."""
        deed, restored = self.deeds[-1], False
        while True:
            events = self._look()
            if (attempt := training_attempt(events)) is not None and attempt > deed.attempt:
                return True
            state = self._ask()
            if state.status.is_final:
                if state.status is RunStatus.COMPLETED or deed.stood_still:
                    self._note(stood_still=f"the run is over: {state.sentence}")
                    return False
                deed = self._note(stood_still=state.sentence)
                self._show(f"{words}: the run stands still: hpcgemma resume {self._entry.name}")
                self._resume()
            elif attempt == deed.attempt and time.time() > (deed.limit_at or deed.at) + _NOTICED_S:
                self._note(stood_still="nothing came of it: the run trained on")
                return True
            elif deed.act is Act.TIME_LIMIT and not restored:
                restored = self._restore_limit(state)
            self._show(f"{words}: {self._waiting_words()}")
            time.sleep(_LOOK_S)

    def _wait_for_the_end(self) -> None:
        """Let the run finish; where that would take long, with fewer steps, as a user would ask for these."""
        shortens_to: int | None = None
        is_shortened = False
        while True:
            state = self._ask()
            if state.status.is_final and (shortens_to is None or is_shortened):
                break
            if state.status.is_final:
                is_shortened = True
                self._resume("--set", f"training.max_steps={shortens_to}", "--allow-change", "recipe")
            elif shortens_to is None and (left_s := self._seconds_left()) is not None and left_s > _LONGEST_END_S:
                shortens_to = max(self._reached.values()) + _LAST_STEPS
                self._show(f"the acts are done; its steps would take {left_s / 60:.0f} more minutes: it gets fewer")
                ending.cancel_run(self._entry, self._client)
                self._asked_at = float("-inf")
            else:
                self._show("the acts are done: the run finishes")
            time.sleep(_LOOK_S)
        self.end = f"{state.status.value}: {state.sentence}"
        if shortens_to is not None:
            self.end += "; it was given fewer steps when the acts were done"

    def _seconds_left(self) -> float | None:
        """Return how long the run would take to finish; None while it makes steps again, or where that is not known."""
        attempt = training_attempt(self._look())
        before = max((step for number, step in self._reached.items() if number != attempt), default=0)
        figures = read_progress(self._entry.folder)
        if attempt is None or figures is None or self._reached.get(attempt, 0) <= before:
            return None
        return figures.seconds_left

    def _look(self) -> list[dict[str, Any]]:
        """Return the run's events, having noted the last step of each attempt."""
        for line in recent_metrics(self._entry.folder):
            if "loss" in line:
                attempt, step = int(line.get("attempt", 0)), int(line["step"])
                self._reached[attempt] = max(step, self._reached.get(attempt, 0))
        return self._entry.folder.events()

    def _ask(self) -> RunState:
        """Return the run's state, asked of the scheduler at the site's pace."""
        now = time.monotonic()
        if self._state is None or now - self._asked_at >= self._plan.poll_interval_s:
            self._asked_at = now
            self._state = tracking.track([self._entry], self._client)[0]
            tracking.end_requeue_wait(self._entry, self._state, self._client)
        return self._state

    def _waiting_words(self) -> str:
        state = self._state
        if state is None:
            return "waiting"
        if state.job is not None and reasons.is_pending(state.job.state):
            pace = f", asking Slurm every {self._plan.poll_interval_s:g} s"
            return f"job {state.job_id} waits in the queue ({state.sentence.rstrip('.')}{pace})"
        return f"{state.status.value}, {state.sentence}"

    # --- doing --------------------------------------------------------------------------------------------------

    def _do(self, act: Act) -> Deed:
        events = self._look()
        attempt, job_id = training_attempt(events), current_job_id(events)
        if attempt is None or job_id is None:
            raise HpcGemmaError(f"run {self._entry.name} stopped in the moment of {act.value}", "drill again")
        at = time.time()
        deed = Deed(act=act, at=at, attempt=attempt, job_id=job_id)
        try:
            done = self._try(act, job_id)
        except OrderRefused as error:
            deed = dataclasses.replace(deed, refused=error.problem)
        else:
            deed = dataclasses.replace(deed, command=done.command, limit_at=done.limit_at)
        self._entry.folder.record("drilled", act=act.value, attempt=attempt, command=deed.command, refused=deed.refused)
        self._asked_at = float("-inf")
        return deed

    def _try(self, act: Act, job_id: str) -> Done:
        """Do an act, and while Slurm is silent try again."""
        tries = 0
        while True:
            try:
                return self._stage.do(act, job_id)
            except OrderRefused:
                raise
            except SchedulerError as error:
                tries += 1
                if tries == _SILENT_TRIES:
                    raise
                self._show(f"{error.problem}; trying again")
                time.sleep(self._plan.poll_interval_s)

    def _resume(self, *options: str) -> None:
        """Call `hpcgemma resume`, as a person would."""
        argv = [sys.executable, "-P", "-m", "hpcgemma", "resume", self._entry.path, *options]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0 and self.deeds:
            self._note(note=f"hpcgemma resume failed: {done.stderr.strip()}")
        self._asked_at = float("-inf")

    def _restore_limit(self, state: RunState) -> bool:
        """Give a requeued job its time limit back, as anybody may while it is pending; return whether that is done."""
        job = state.job
        if job is None or job.job_id != self.deeds[-1].job_id or not reasons.is_pending(job.state):
            return False
        try:
            self._client.set_time_limit(job.job_id, self._plan.walltime_min)
        except SchedulerError as error:
            self._note(note=f"the requeued job keeps its lowered limit: {error.problem}")
        return True

    def _note(self, **facts: Any) -> Deed:
        self.deeds[-1] = dataclasses.replace(self.deeds[-1], **facts)
        return self.deeds[-1]
