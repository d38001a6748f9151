"""Writing files so that a reader never sees half of one, also on Lustre, GPFS and NFS."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PRIVATE_DIR_MODE = 0o700
"""Run folders hold pickles that are loaded later, so nobody else may write or read there."""


def make_private_dir(path: Path) -> None:
    """Create a folder (and its parents) that only its owner can enter.

    Raises:
        FileExistsError: The folder is there already.
        OSError: It cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=PRIVATE_DIR_MODE)


def write_atomically(path: Path, text: str) -> None:
    """Write text beside the target, flush it to the disk, and rename it over the target."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Write bytes beside the target, flush them to the disk, and rename the file over the target.

    Args:
        path: The target.
        content: The bytes.
        mode: Of the new file, as `chmod` has it; None: as the umask says.
    """
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with staged.open("wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as one line, in one write, so that concurrent writers do not interleave.

    A line that a full disk cut short stays behind as a line of its own, which readers pass over.

    Raises:
        OSError: The line could not be written whole.
    """
    line = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; half-written lines are passed over, as is a file that cannot be read."""
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except OSError:
        return
    with file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def fsync_path(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
