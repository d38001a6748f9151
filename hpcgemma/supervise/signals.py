"""Warnings as flags: a handler only notes what came, and only in the process that installed it."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType


class WarningFlags:
    """The signals that this process has received.

    A forked child inherits the handlers; the comparison of process ids keeps it from acting on them.

    Args:
        warning: Name of the warning signal without SIG.
    """

    def __init__(self, warning: str) -> None:
        self._pid = os.getpid()
        self._warning = signal.Signals[f"SIG{warning}"]
        self.warned: str | None = None
        """Name of the first signal that asks for a save."""
        self.warned_at: float | None = None
        """Monotonic time of that signal, in seconds."""
        self.terminated_at: float | None = None
        """Monotonic time of the first SIGTERM: Slurm kills KillWait seconds later (slurm.conf)."""

    def install(self) -> None:
        """Take over the warning signal, SIGTERM, SIGINT and SIGCONT, from submitit too."""
        for number in (self._warning, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        signal.signal(signal.SIGCONT, self._ignore)

    def forget(self) -> None:
        """Be ready for another warning, after one that was dealt with."""
        self.warned = self.warned_at = self.terminated_at = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return
        now = time.monotonic()
        if self.warned is None:
            self.warned, self.warned_at = signal.Signals(number).name, now
        if number == signal.SIGTERM and self.terminated_at is None:
            self.terminated_at = now

    def _ignore(self, number: int, frame: FrameType | None) -> None:
        """SIGCONT comes with every SIGTERM of Slurm and says nothing more."""
