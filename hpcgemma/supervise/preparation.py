"""The one process that prepares the data before any rank exists: started, watched, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping

from hpcgemma.plan import Plan
from hpcgemma.processes import child_pids, cpu_seconds
from hpcgemma.runs.folder import RunFolder
from hpcgemma.supervise import launchers, stacks
from hpcgemma.supervise.hang import Beat, Hang, HangWatch, between_looks_s
from hpcgemma.supervise.rank_watch import STACKS_WAIT_S, text_from

PREPARING = "preparing"
_BETWEEN_READS_S = 0.1
_CLEANING_S = 5.0
"""From SIGTERM to SIGKILL, in which it removes what is half-made."""
_DYING_S = 30.0
"""After SIGKILL. Whom the kernel holds in a call to a file system does not die before that answers."""


class Preparation:
    """The process, which works from now on.

    It lives while it computes, it or a process of its own, or while its heartbeat changes, as where it waits for
    another job that prepares the same data. CPU time is counted from outside: a thread inside that said so would live
    on while the others hang, and could not say it while a library holds Python's lock.

    Args:
        plan: How long it may be silent, and which signal asks for stacks.
        folder: The run folder.
        attempt: Number of the attempt.
        environment: What the process sees.
    """

    def __init__(self, plan: Plan, folder: RunFolder, attempt: int, environment: Mapping[str, str]) -> None:
        self._folder, self._log = folder, folder.prepare_log(attempt)
        self._stacks_signal = signal.Signals[f"SIG{plan.stacks_signal}"]
        self._watch = HangWatch({}, training_s=None, elsewhere_s=plan.silent_elsewhere_s)
        self._between_looks_s = between_looks_s(plan.silent_elsewhere_s)
        self._next_look = 0.0
        self._process = launchers.prepare(folder, attempt, environment)

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it lives."""
        return self._process.poll()

    def look(self) -> Hang | None:
        """Look for signs of life, now and then, and return whether it hangs."""
        now = time.monotonic()
        if now < self._next_look or self.poll() is not None:
            return None
        self._next_look = now + self._between_looks_s
        return self._watch.look({0: Beat(self._signs(), PREPARING)}, now)

    def write_stacks(self) -> None:
        """Let it, and the processes that it has started, write their stacks into its log."""
        end = self._log.stat().st_size
        for pid in (self._process.pid, *child_pids(self._process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, self._stacks_signal)
        deadline = time.monotonic() + STACKS_WAIT_S
        before, written = "", text_from(self._log, end)
        while not (stacks.has_stack(written) and written == before) and time.monotonic() < deadline:
            time.sleep(_BETWEEN_READS_S)
            before, written = written, text_from(self._log, end)

    def end(self) -> None:
        """End it, if it lives."""
        if self.poll() is not None:
            return
        self._process.terminate()
        for wait_s in (_CLEANING_S, _DYING_S):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=wait_s)
                return
            self._process.kill()

    def _signs(self) -> str:
        """Return what becomes another while it lives: its heartbeat, and its CPU time.

        In whole seconds, since a thread that only keeps a lock fresh uses milliseconds.
        """
        try:
            said = self._folder.prepare_heartbeat_file.read_text(encoding="utf-8")
        except OSError:
            said = ""
        return f"{said} {int(cpu_seconds(self._process.pid))} s"
