"""The wish to stop: a flag that signals set, and that the loop reads at its step boundaries."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Mapping
from types import FrameType


class StopRequest:
    """The first stop signal that this process received. Handlers only set a flag.

    Processes forked later, such as the DataLoader's workers, inherit the handler and must ignore the signal: the
    rank itself ends them. So the flag is set only in the process that made this object.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        self.signal_number = 0
        self._received_at = 0.0

    @property
    def age_s(self) -> float:
        """Seconds since the signal came; 0 where none did."""
        return time.monotonic() - self._received_at if self.signal_number else 0.0

    def listen(self, numbers: set[signal.Signals]) -> None:
        """Take these signals from now on."""
        for number in numbers:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._owner and not self.signal_number:
            self._received_at = time.monotonic()
            self.signal_number = number


def stop_signals(variables: Mapping[str, str]) -> set[signal.Signals]:
    """Return the signals that ask for a stop: SIGTERM, SIGUSR2, and the one that ``HPCGEMMA_SIGNAL`` names.

    Without the one that asks for stacks: that may be SIGUSR2, where SIGUSR1 warns.

    Args:
        variables: The environment. The name comes with or without SIG; what is no signal is passed over, because
            dying of an odd variable would lose work.
    """
    return ({signal.SIGTERM, signal.SIGUSR2} | _named(variables, "HPCGEMMA_SIGNAL")) - stacks_signals(variables)


def stacks_signals(variables: Mapping[str, str]) -> set[signal.Signals]:
    """Return the signal that ``HPCGEMMA_STACKS_SIGNAL`` names, if it does, other than the one that warns."""
    return _named(variables, "HPCGEMMA_STACKS_SIGNAL") - _named(variables, "HPCGEMMA_SIGNAL")


def write_stacks_on(numbers: set[signal.Signals]) -> None:
    """Write the stacks of all threads into the log on these signals, whatever the threads are doing."""
    for number in numbers:
        faulthandler.register(number, all_threads=True)


def _named(variables: Mapping[str, str], variable: str) -> set[signal.Signals]:
    name = variables.get(variable, "").strip().upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    is_usable = name in signal.Signals.__members__ and name not in ("SIGKILL", "SIGSTOP")
    return {signal.Signals[name]} if is_usable else set()


def signal_name(number: int) -> str | None:
    """Return a signal's name, such as SIGTERM; None for 0."""
    return signal.Signals(number).name if number else None
