"""What is dear to make and only looked at: made once in a run of the tests, whichever of its workers needs it first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder of this run of the tests, the same for all its workers."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the first worker to ask for it has filled; the others wait for that one.

    Args:
        factory: Pytest's maker of temporary folders.
        name: Of the folder.
        make: Fills the new folder, which a worker that failed or was killed may have begun to fill: each try has a
            folder of its own.
    """
    root = shared_folder(factory) / "shared"
    root.mkdir(mode=0o700, exist_ok=True)
    made = root / f"{name}-is-at"
    # The lock ends with its process, in whatever way that ends.
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            folder = factory.mktemp(name)
            make(folder)
            made.symlink_to(folder)
    return made.resolve()
