"""What this machine has: Python and packages, Slurm's commands, the model cache, the file system of the runs."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcgemma.hub import hub_cache

TRAINER_PACKAGES = ("torch", "transformers", "accelerate", "peft", "safetensors", "tokenizers")
SLURM_COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """Whether a run can live in a folder."""

    folder: Path
    """The folder, or the nearest above it that exists."""
    problem: str = ""
    """Why nothing can be written there; empty where something can."""
    has_links: bool = False
    """Whether link(2) works, on which the lock of a run rests."""
    has_locks: bool = False
    """Whether flock(2) works."""
    free_gib: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What this machine has."""

    python: str
    missing_packages: tuple[str, ...]
    """Packages of the trainer that are not installed."""
    missing_commands: tuple[str, ...]
    """Commands of Slurm that are not there."""
    hub_cache: Path
    cached_models: int
    """Models in the cache."""
    runs: FileSystem


def look_at_machine(runs_dir: Path) -> Machine:
    """Return what this machine has.

    Args:
        runs_dir: Where run folders are, or will be; nothing is left there.
    """
    cache = hub_cache()
    return Machine(
        python=platform.python_version(),
        missing_packages=_missing(TRAINER_PACKAGES),
        missing_commands=tuple(name for name in SLURM_COMMANDS if shutil.which(name) is None),
        hub_cache=cache,
        cached_models=sum(1 for _ in cache.glob("models--*")),
        runs=_try_file_system(runs_dir),
    )


def _missing(packages: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in packages if importlib.util.find_spec(name) is None)


def _try_file_system(wanted: Path) -> FileSystem:
    folder = next(each for each in (wanted, *wanted.parents) if each.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".hpcgemma-doctor-", dir=folder) as name:
            probe = Path(name) / "probe"
            probe.write_bytes(b"x")
            return FileSystem(
                folder=folder,
                has_links=_can_link(probe),
                has_locks=_can_lock(probe),
                free_gib=shutil.disk_usage(folder).free / 2**30,
            )
    except OSError as error:
        return FileSystem(folder=folder, problem=error.strerror or str(error))


def _can_link(probe: Path) -> bool:
    try:
        os.link(probe, probe.with_suffix(".link"))
    except OSError:
        return False
    return True


def _can_lock(probe: Path) -> bool:
    try:
        with probe.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
