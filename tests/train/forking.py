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
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


class Forker:
    """The process, as the tests use it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.train.forking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HPCGEMMA_DEVICE": "cpu"},
        )
        self._ended: dict[int, int] = {}

    def start(self, folder: Path, environment: Mapping[str, str], log: Path) -> int:
        """Start a rank and return its process id."""
        request = {"folder": str(folder), "environment": dict(environment), "log": str(log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        while not isinstance(answer := self._answer(), int):
            self._ended[answer[0]] = answer[1]
        return answer

    def wait(self, pids: list[int], timeout_s: float) -> list[int]:
        """Return the exit codes of ranks, negative for a signal; those that take longer are killed."""
        clock = threading.Timer(timeout_s, _kill, pids)
        clock.start()
        try:
            while not all(pid in self._ended for pid in pids):
                pid, code = self._answer()
                self._ended[pid] = code
        finally:
            clock.cancel()
        return [self._ended.pop(pid) for pid in pids]

    def end(self) -> None:
        """End the process, and its ranks with it."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the forking process has ended"
        return json.loads(line)


def _kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


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
