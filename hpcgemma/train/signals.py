"""The wish to stop: a flag that signals set, and that the loop reads at its step boundaries."""

from __future__ import annotations

import os
import signal
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

    def listen(self, numbers: set[signal.Signals]) -> None:
        """Take these signals from now on."""
        for number in numbers:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._owner and not self.signal_number:
            self.signal_number = number


def stop_signals(variables: Mapping[str, str]) -> set[signal.Signals]:
    """Return the signals that ask for a stop: SIGTERM, SIGUSR2, and the one that ``HPCGEMMA_SIGNAL`` names.

    Args:
        variables: The environment. The name comes with or without SIG; what is no signal is passed over, because
            dying of an odd variable would lose work.
    """
    wanted = {signal.SIGTERM, signal.SIGUSR2}
    name = variables.get("HPCGEMMA_SIGNAL", "").strip().upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name in signal.Signals.__members__ and name not in ("SIGKILL", "SIGSTOP"):
        wanted.add(signal.Signals[name])
    return wanted


def signal_name(number: int) -> str | None:
    """Return a signal's name, such as SIGTERM; None for 0."""
    return signal.Signals(number).name if number else None
