"""SIGTERM that lets go of what is half-made before it ends the process."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType


class _Terminated(BaseException):
    """SIGTERM came."""


@contextlib.contextmanager
def unwinds_at_sigterm() -> Iterator[None]:
    """Leave every ``with`` and ``finally`` of the block before SIGTERM, as of a cancelled job, ends this process.

    For the main thread of a program. What ended it stays visible: it dies of the signal.
    """

    def unwind(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: a second one must not cut the cleaning short
        raise _Terminated

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
