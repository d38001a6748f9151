"""A disk that refuses what a test says: calls of the C library fail in a process that preloads our own."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")


class FaultyDisk:
    """The library, compiled into a folder, and the rules by which calls fail.

    Args:
        folder: Where the library and the rules are kept.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("gcc")
        if compiler is None:
            pytest.skip("making a disk fail needs gcc")
        library = folder / "faulty_disk.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
        self._rules = folder / "rules"
        self.environment = {"LD_PRELOAD": str(library), "FAULTY_DISK_RULES": str(self._rules)}
        """What a process needs to have this disk."""

    def refuse(self, *rules: tuple[str, int, str]) -> None:
        """From now on let calls fail: the call, the error's number, and a pattern of the path."""
        staged = self._rules.with_suffix(".new")
        staged.write_text("".join(f"{call} {number} {pattern}\n" for call, number, pattern in rules))
        staged.replace(self._rules)

    def delay(self, seconds: float, *rules: tuple[str, str]) -> None:
        """From now on let calls take longer: the call, and a pattern of the path."""
        self.refuse(*((call, -round(seconds * 1000), pattern) for call, pattern in rules))

    def heal(self) -> None:
        """Let every call do what it says."""
        self._rules.unlink(missing_ok=True)


def words_of(number: int) -> str:
    """Return what the system says of an error, as messages repeat it."""
    assert number in errno.errorcode
    return os.strerror(number)
