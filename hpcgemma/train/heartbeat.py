"""A sign of life of each rank, for the supervisor and for people."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

PERIOD_S = 1.0
"""A heartbeat in an unchanged phase is written at most this often."""


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
        self._next = 0.0
        self.step = 0
        self.total_steps = 0
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)

    def beat(self, phase: str | None = None, step: int | None = None) -> None:
        """Say what this rank does now.

        Args:
            phase: One word, such as training, evaluating or saving; None where that is as before.
            step: Optimizer steps taken; None where that is as before.
        """
        self.step = self.step if step is None else step
        phase = self._phase if phase is None else phase
        now = time.monotonic()
        if phase == self._phase and now < self._next:
            return
        self._phase, self._next = phase, now + PERIOD_S
        facts = {"step": self.step, "total_steps": self.total_steps, "phase": phase, "time": time.time()}
        with contextlib.suppress(OSError):
            self._staged.write_text(json.dumps(facts), encoding="utf-8")
            self._staged.replace(self._path)
