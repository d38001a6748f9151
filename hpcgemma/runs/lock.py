"""The lock of a run folder: one supervisor at a time works on a run. It trusts no file lock and no clock.

Whoever takes the lock makes a file ``lock/<n>`` with the next number; the highest is the holder's, who writes into it
at short intervals. That a number is made once is link(2)'s promise, on Lustre and NFS too. None is ever deleted: one
who has read an old list of the folder would make a number a second time, and two would hold the lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hpcgemma import files
from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.runs.folder import RunFolder

PERIOD_S = 10.0
"""Seconds between two signs of life of the holder."""

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What link(2) says on a file system that has none."""


class LockHeldError(InputError):
    """Another job works on the run."""


class LockLostError(HpcGemmaError):
    """Another job has taken the run over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds the lock, and its last sign of life."""

    job_id: str
    on_slurm: bool
    restarts: int
    """How often its job had been requeued when it took the lock."""
    host: str
    pid: int
    start_ticks: int | None
    """When its process started, in clock ticks since boot; with `boot` it tells it from another with its number."""
    boot: str
    attempt: int = 0
    """Its newest attempt."""
    beats: int = 0
    """Signs of life so far; that they grow is what counts, not when they came by anybody's clock."""
    is_released: bool = False

    def __str__(self) -> str:
        return f"job {self.job_id} on {self.host} (process {self.pid}, attempt {self.attempt})"


@dataclass(frozen=True, slots=True)
class Claim:
    """A numbered file of the lock as it was read."""

    path: Path
    content: bytes

    @property
    def number(self) -> int:
        """Its number."""
        return int(self.path.name)

    @property
    def holder(self) -> Holder | None:
        """Who made it; None where it cannot be read."""
        try:
            return Holder(**json.loads(self.content))
        except (ValueError, TypeError):
            return None

    @property
    def is_released(self) -> bool:
        """Whether its holder has let go."""
        return self.holder is not None and self.holder.is_released

    def read_again(self) -> Claim:
        """Return it as it is now."""
        return _read(self.path)


IsOver = Callable[[Claim], bool]
"""Whether the holder of a claim that was not released is gone."""


class RunLock:
    """The lock, held by this process.

    Args:
        path: The numbered file that this process made.
        holder: This process.
    """

    def __init__(self, path: Path, holder: Holder) -> None:
        self._path, self._holder = path, holder
        self._next_path = path.with_name(str(int(path.name) + 1))
        self._next_beat = time.monotonic() + PERIOD_S

    @classmethod
    def take(cls, folder: RunFolder, holder: Holder, is_over: IsOver) -> RunLock:
        """Take the lock of a run.

        Args:
            folder: The run folder.
            holder: Who takes it.
            is_over: Asked of a holder that has not let go.

        Raises:
            LockHeldError: Another holds it.
            OSError: The disk refused.
        """
        folder.lock_dir.mkdir(mode=files.PRIVATE_DIR_MODE, exist_ok=True)
        while True:
            newest = newest_claim(folder)
            if newest is not None and not newest.is_released and not is_over(newest):
                who = newest.read_again().holder or "a job that cannot be told"
                raise LockHeldError(
                    f"another job works on this run: {who}; job {holder.job_id} leaves it alone",
                    f"hpcgemma status {folder.path.name}  shows it; hpcgemma cancel {folder.path.name}  ends it",
                )
            path = folder.lock_dir / str(newest.number + 1 if newest else 1)
            if _make(path, _text_of(holder)):
                return cls(path, holder)
            time.sleep(0.01)  # somebody was faster; judge that one

    def beat(self, attempt: int) -> None:
        """Give a sign of life, unless one of this attempt was given just now.

        A disk that refuses costs the sign, not the run.

        Args:
            attempt: The newest attempt.

        Raises:
            LockLostError: Another has taken the lock, who found this job's end in the scheduler's word.
        """
        if time.monotonic() < self._next_beat and attempt == self._holder.attempt:
            return
        self._next_beat = time.monotonic() + PERIOD_S
        if self._next_path.exists():
            who = _read(self._next_path).holder or "another job"
            raise LockLostError(f"{who} has taken this run over; job {self._holder.job_id} leaves it alone", "")
        self._rewrite(replace(self._holder, attempt=attempt, beats=self._holder.beats + 1))

    def release(self) -> None:
        """Let go, so that who comes next need not ask the scheduler."""
        self._rewrite(replace(self._holder, is_released=True))

    def _rewrite(self, holder: Holder) -> None:
        self._holder = holder
        with contextlib.suppress(OSError):
            files.write_atomically(self._path, _text_of(holder))


def newest_claim(folder: RunFolder) -> Claim | None:
    """Return the claim with the highest number; None where the lock was never taken."""
    try:
        numbers = [int(name) for name in os.listdir(folder.lock_dir) if name.isdigit()]  # noqa: PTH208 - one call
    except FileNotFoundError:
        return None
    number = max(numbers, default=0)
    while (folder.lock_dir / str(number + 1)).exists():  # a list may be some seconds old on NFS
        number += 1
    return _read(folder.lock_dir / str(number)) if number else None


def _read(path: Path) -> Claim:
    return Claim(path, path.read_bytes())


def _text_of(holder: Holder) -> str:
    return json.dumps(asdict(holder)) + "\n"


def _make(path: Path, text: str) -> bool:
    """Make a file with its content at once, and return whether it was this process that made it."""
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        with staged.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(staged, path)
        except FileExistsError:
            return staged.stat().st_nlink > 1  # over NFS an answer may be lost, and the call be made twice
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _make_exclusively(path, text)
    finally:
        staged.unlink(missing_ok=True)
    files.fsync_path(path.parent)
    return True


def _make_exclusively(path: Path, text: str) -> bool:
    """Do the same where there are no links; for a moment the file is empty, and its holder not to be told."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True
