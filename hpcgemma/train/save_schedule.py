"""When the next periodic checkpoint is due: every so many steps, or as often as measured costs make it worth."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.time_use import hours_to_loss
from hpcgemma.train.metrics import say
from hpcgemma.train.ranks import Ranks

FIRST_STEPS = 10
"""Steps after which a step's time is known well enough; where no save was measured yet, the first one is made then."""

_SAVES_LOOKED_AT = 5
_EARLY_SHARE = 0.9
"""Of the interval, from which on a save is due: a step's time varies, and the optimum is flat."""
_LOOK_AHEAD = 4
"""Times as many steps as were measured that the next look may be away."""
_TOLD_SHARE = 0.25
"""Change of the interval that is worth a line in the log."""


def best_interval_s(save_s: float, hours: float) -> float:
    """Return the seconds between two saves that lose the least time: W = sqrt(2 C M).

    C is what a save costs, M the mean time to an interruption that loses what was not saved; saving costs C/W of the
    time, losing half an interval at each interruption W/2M (Young 1974; Daly 2006).

    Args:
        save_s: Seconds in which the training stands still for a save.
        hours: Mean hours to an interruption that nothing announces.
    """
    return math.sqrt(2 * save_s * hours * 3600)


@dataclass(slots=True)
class _Look:
    """What rank 0 decides and all ranks follow."""

    is_due: bool
    next_look: int
    """The step at whose boundary rank 0 is asked again."""
    sentence: str = ""


class SaveSchedule:
    """When to save besides the best steps and the stops. Every method must be called by all ranks.

    Under ``auto`` rank 0 decides by its clock; the others are told at steps that all know beforehand. When a checkpoint
    is made does not change what is trained.

    Args:
        every_steps: As in the recipe.
        step: Steps taken when the attempt begins.
        folder: The run folder; its events say what saves have cost, and what was lost.
        ranks: All ranks.
        interruption_every_h: Mean hours between unannounced interruptions to assume before any were seen.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        every_steps: int | Literal["auto"],
        step: int,
        folder: RunFolder,
        ranks: Ranks,
        *,
        interruption_every_h: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every, self._folder, self._ranks, self._clock = every_steps, folder, ranks, clock
        self._assumed_h = interruption_every_h
        self._since_step, self._since = step, clock()
        self._step_s: float | None = None
        self._next_look = step + FIRST_STEPS
        self._told_steps: float | None = None
        before = folder.events() if every_steps == "auto" and ranks.is_first else []
        saves = [event for event in before if event.get("event") == "saved"]
        self._saves = [float(event.get("stall_s", event["seconds"])) for event in saves]

    def is_due(self, step: int) -> bool:
        """Return whether the state of a step is to be saved; all ranks get the same answer."""
        if self._every != "auto":
            return step % self._every == 0
        if step < self._next_look:
            return False
        return self._follow(self._look(step) if self._ranks.is_first else None).is_due

    def note_saved(self, step: int, seconds: float) -> None:
        """Count from here, whatever the state was saved for, and whether the disk took it or not.

        Args:
            step: The step that was saved.
            seconds: How long the training stood still for it.
        """
        if self._every != "auto":
            return
        self._saves.append(seconds)
        self._since_step, self._since = step, self._clock()
        self._follow(self._look(step) if self._ranks.is_first else None)

    def _follow(self, look: _Look | None) -> _Look:
        agreed = self._ranks.from_first(look)
        if agreed is None:
            raise RuntimeError("rank 0 did not decide")
        self._next_look = agreed.next_look
        if agreed.sentence and self._ranks.is_first:
            say(agreed.sentence)
        return agreed

    def _look(self, step: int) -> _Look:
        """Decide whether a save is due at a step, and when to look again; rank 0."""
        elapsed, steps = self._clock() - self._since, step - self._since_step
        if steps:
            self._step_s = elapsed / steps
        if not self._saves or self._step_s is None:
            return _Look(is_due=bool(steps) and not self._saves, next_look=step + FIRST_STEPS)
        save_s = statistics.median(self._saves[-_SAVES_LOOKED_AT:])
        hours = hours_to_loss(self._folder.events(), assumed_h=self._assumed_h)
        interval_s, step_s = best_interval_s(save_s, hours), max(self._step_s, 1e-6)
        sentence = self._sentence(interval_s, save_s, hours, step_s)
        left_steps = math.ceil((interval_s - elapsed) / step_s)
        if steps and elapsed >= _EARLY_SHARE * interval_s:
            return _Look(is_due=True, next_look=step + FIRST_STEPS, sentence=sentence)
        ahead = min(max(left_steps, 1), _LOOK_AHEAD * max(steps, FIRST_STEPS))
        return _Look(is_due=False, next_look=step + ahead, sentence=sentence)

    def _sentence(self, interval_s: float, save_s: float, hours: float, step_s: float) -> str:
        """Return what to say of the interval; empty where it is about the one said before."""
        steps = max(1.0, interval_s / step_s)
        if self._told_steps is not None and abs(steps - self._told_steps) <= _TOLD_SHARE * self._told_steps:
            return ""
        self._told_steps = steps
        return (
            f"checkpoints: every {interval_s:.0f} s, about {steps:.0f} steps, lose the least time: a save takes "
            f"{save_s:.2f} s, and every {hours:.3g} h something may end the run without warning"
        )
