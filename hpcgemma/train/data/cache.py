"""Prepared data that several runs share: folders named by what is in them, linked into each run.

Many jobs may want the same folder at once, on a file system where locks are not to be relied on (Lustre without flock).
So nothing rests on the lock but time: whoever holds it prepares, the others wait for the folder to appear; if the
holder is gone, which the age of its lock file shows, or on the same machine its process, one of them prepares it too.
The folder appears whole, by a rename, and whoever comes second throws its own away.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hpcgemma import files
from hpcgemma.processes import process_start_ticks

CACHE_NAME = ".prepared"
"""Beside the run folders."""

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""A lock that was not touched for so long has lost its holder."""

UNUSED_DAYS = 30
"""A folder that no run has linked, and that is older, is removed."""


def obtain(
    cache: Path,
    key: str,
    build: Callable[[Path], None],
    is_whole: Callable[[Path], bool],
    say: Callable[[str], None],
    on_wait: Callable[[], None] = lambda: None,
) -> Path:
    """Return the cache's folder of a key; where it is missing, build it, or wait for who is building it.

    Args:
        cache: The cache, which need not exist.
        key: Names all that decides the content.
        build: Fills an empty folder.
        is_whole: Whether a folder of the cache is complete.
        say: Told why this waits.
        on_wait: Called again and again while it does.
    """
    with contextlib.suppress(FileExistsError):
        files.make_private_dir(cache)
    target, lock = cache / key, cache / f"{key}.lock"
    waited = False
    while not _present(target, is_whole):
        if _take(lock):
            with _kept_fresh(lock):
                if not _present(target, is_whole):
                    _build(target, build)
            break
        if not waited:
            say(f"waiting for another job that prepares the same data ({_holder(lock)})")
            waited = True
        on_wait()
        time.sleep(0.5)
    with contextlib.suppress(OSError):
        os.utime(target)
    _remove_unused(cache, keep=key)
    return target


def link_tree(source: Path, target: Path) -> None:
    """Make a folder of hard links to the files of another, or of copies where the file system links none."""
    files.make_private_dir(target)
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            files.make_private_dir(copy)
            continue
        try:
            os.link(path, copy)
        except OSError:
            shutil.copy2(path, copy)


def _present(target: Path, is_whole: Callable[[Path], bool]) -> bool:
    if not target.exists():
        return False
    if is_whole(target):
        return True
    shutil.rmtree(target, ignore_errors=True)
    return False


def _build(target: Path, build: Callable[[Path], None]) -> None:
    host = socket.gethostname()
    for left in target.parent.glob(f".{target.name}.{glob.escape(host)}.*"):  # of a process that was killed
        if _is_gone(f"process {left.name.rpartition('.')[2]} on {host}"):
            shutil.rmtree(left, ignore_errors=True)
    staging = target.with_name(f".{target.name}.{host}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    files.make_private_dir(staging)
    try:
        build(staging)
        for path in sorted(staging.rglob("*")):
            files.fsync_path(path)
            if path.is_file():
                path.chmod(0o400)  # runs share these files
        files.fsync_path(staging)
        with contextlib.suppress(OSError):  # another was quicker: both are the same
            staging.rename(target)
            files.fsync_path(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _take(lock: Path) -> bool:
    """Return whether the lock is ours now."""
    with contextlib.suppress(OSError):
        if time.time() - lock.stat().st_mtime > STALE_S or _is_gone(_holder(lock)):
            lock.unlink()
    try:
        with lock.open("x", encoding="utf-8") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
    except FileExistsError:
        return False
    except OSError:  # a full disk must not leave a lock without a holder
        lock.unlink(missing_ok=True)
        raise
    return True


def _holder(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"


def _is_gone(holder: str) -> bool:
    """Return whether a process of this machine is no more; of another machine's, nothing is known."""
    named = re.fullmatch(r"process (\d+) on (.+)", holder)
    return named is not None and named[2] == socket.gethostname() and process_start_ticks(int(named[1])) is None


@contextlib.contextmanager
def _kept_fresh(lock: Path) -> Iterator[None]:
    """Touch the lock while the context lasts, then give it back."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(lock)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        lock.unlink(missing_ok=True)


def _remove_unused(cache: Path, *, keep: str) -> None:
    oldest = time.time() - UNUSED_DAYS * 86400
    with contextlib.suppress(OSError):
        for folder in cache.iterdir():
            if folder.name == keep or not folder.is_dir() or folder.stat().st_mtime > oldest:
                continue
            if all(path.stat().st_nlink == 1 for path in folder.rglob("*") if path.is_file()):
                shutil.rmtree(folder, ignore_errors=True)
