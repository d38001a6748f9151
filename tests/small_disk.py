"""A disk of 24 MB, to be filled."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


class NoDiskError(Exception):
    """This machine lets no disk be mounted."""


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount an empty disk at a folder for the time of a ``with`` block.

    Raises:
        NoDiskError: That needs root, or cannot be done here.
    """
    if os.geteuid() != 0:
        raise NoDiskError("mounting a small disk needs root")
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        raise NoDiskError("this machine lets no small disk be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """Leave not one byte free, and return the file that takes all."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    return filler
