"""A process that has imported torch, and forks a rank from itself when asked: a second where a start takes eight.

Run as ``python -m tests.train.forking``. Each line it reads is one request, ``{"folder", "environment", "log"}``; it
answers with the rank's process id, and with a line ``[id, exit code]`` when that rank has ended. Its ranks end with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any

_PR_SET_PDEATHSIG = 1
_START_S = 120.0
"""Seconds for the imports, which come once."""


class ForkedRank:
    """A rank that was forked, with what ``subprocess.Popen`` offers of a process.

    Args:
        pid: Its process id.
        ended: Its exit code, negative for a signal, once it has ended.
    """

    def __init__(self, pid: int, ended: Future[int]) -> None:
        self.pid = pid
        self._ended = ended

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code."""
        try:
            return self._ended.result(timeout)
        except TimeoutError:
            raise subprocess.TimeoutExpired(["rank"], timeout or 0.0) from None

    def send_signal(self, number: int) -> None:
        """Send it a signal; none if it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Forker:
    """The process, as the tests use it.

    Args:
        environment: Variables that it has beside this process's own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.train.forking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HPCGEMMA_DEVICE": "cpu"}
            | dict(environment or {}),
        )
        self._started: SimpleQueue[int] = SimpleQueue()
        self._ended: dict[int, Future[int]] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def start(self, folder: Path, environment: Mapping[str, str], log: Path) -> ForkedRank:
        """Start a rank."""
        request = {"folder": str(folder), "environment": dict(environment), "log": str(log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        pid = self._started.get(timeout=_START_S)
        return ForkedRank(pid, self._ended[pid])

    def end(self) -> None:
        """End the process, and its ranks with it."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if isinstance(answer, int):
                self._ended[answer] = Future()
                self._started.put(answer)
            else:
                pid, code = answer
                self._ended[pid].set_result(code)


def main() -> None:
    """Import, then serve."""
    import hpcgemma.train.loop
    import hpcgemma.train.strategies.ddp
    import hpcgemma.train.strategies.deepspeed
    import hpcgemma.train.strategies.fsdp
    from hpcgemma.train.quantization import import_bitsandbytes

    import_bitsandbytes()  # before peft does
    import deepspeed
    import peft

    assert all((deepspeed, peft, hpcgemma.train))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lock = threading.Lock()

    def watch(pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        with lock:
            answers.write(json.dumps([pid, os.waitstatus_to_exitcode(status)]) + "\n")

    for line in sys.stdin:
        request = json.loads(line)
        with lock:
            pid = os.fork()
            if not pid:
                _be_a_rank(request)
            answers.write(json.dumps(pid) + "\n")
        threading.Thread(target=watch, args=(pid,), daemon=True).start()


def _be_a_rank(request: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["hpcgemma.train", request["folder"]]
    from hpcgemma.train.__main__ import main as train

    train()


if __name__ == "__main__":
    main()
