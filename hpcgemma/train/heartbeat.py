"""A sign of life of each rank, for the supervisor and for people."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

PERIOD_S = 1.0
"""In an unchanged phase a heartbeat of the same step is written at most this often, and so is one of another step."""
_OWN_PART_WEIGHT = 0.05
"""Of a new step in the mean: about the last twenty count."""


class Heartbeat:
    """Writes step, phase and time to this rank's heartbeat file.

    It neither flushes to the disk nor fails: a lost heartbeat must not cost a training.

    Args:
        path: The rank's heartbeat file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._phase = ""
        self._next = self._next_step = 0.0
        self._written_step = 0
        self.step = 0
        self.total_steps = 0
        self._own_s: float | None = None
        self._rows_s: float | None = None
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)

    def note_own_part(self, own_s: float, rows_s: float) -> None:
        """Note how long this rank's own part of a step took; what is written is the mean of the last steps.

        Args:
            own_s: Seconds up to the exchange of gradients.
            rows_s: Seconds among them in which rows were read.
        """
        self._own_s, self._rows_s = _mean(self._own_s, own_s), _mean(self._rows_s, rows_s)

    def beat(self, phase: str | None = None, step: int | None = None) -> None:
        """Say what this rank does now.

        Args:
            phase: One word, such as training, evaluating or saving; None where that is as before.
            step: Optimizer steps taken; None where that is as before.
        """
        self.step = self.step if step is None else step
        phase = self._phase if phase is None else phase
        now = time.monotonic()
        is_other_step = self.step != self._written_step
        if phase == self._phase and now < (self._next_step if is_other_step else self._next):
            return
        self._next = now + PERIOD_S
        if is_other_step or phase != self._phase:
            self._next_step = now + PERIOD_S
        self._phase, self._written_step = phase, self.step
        facts = {
            "step": self.step,
            "total_steps": self.total_steps,
            "phase": phase,
            "own_s": self._own_s,
            "rows_s": self._rows_s,
            "time": time.time(),
        }
        with contextlib.suppress(OSError):
            self._staged.write_text(json.dumps(facts), encoding="utf-8")
            self._staged.replace(self._path)


def _mean(before: float | None, seconds: float) -> float:
    return seconds if before is None else before + _OWN_PART_WEIGHT * (seconds - before)
