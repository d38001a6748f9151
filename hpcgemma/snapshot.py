"""hpcgemma's own code as a run takes it along: a copy of the package in the run folder, and its hash.

What was submitted is then what runs after each requeue, whatever became of the working tree or of the installed
package meanwhile. The copy is laid out as in a wheel, so that it is a whole hpcgemma, its commands included.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from hpcgemma import assets, files

PACKAGE = Path(__file__).resolve().parent
"""The package that runs now."""

NAME = PACKAGE.name

_FILE_MODE = 0o600


def start_command(package: Path, module: str) -> list[str]:
    """Return the command line that runs a module with a copy of hpcgemma; arguments follow.

    ``-P`` keeps the working folder out of the import path: a user's own queue.py must not shadow anything.

    Args:
        package: Folder of the copy.
        module: A module that need not be hpcgemma's own.
    """
    return [sys.executable, "-P", "-u", str(package / "start.py"), module]


def code_hash(package: Path = PACKAGE) -> str:
    """Return a hash of a package's code, its Python files; empty where there is none."""
    digest = hashlib.sha256()
    names = code_files(package)
    for name in names:
        digest.update(f"{name}\0{files.sha256_of(package / name)}\0".encode())
    return digest.hexdigest() if names else ""


def code_files(package: Path) -> list[str]:
    """Return the Python files of a package, by their paths in it, sorted."""
    return sorted(str(path.relative_to(package)) for path in _files(package) if path.suffix == ".py")


def changed_files(before: Path, now: Path) -> list[str]:
    """Return the Python files in which two copies of the package differ, those included that only one has."""
    names = sorted({*code_files(before), *code_files(now)})
    return [name for name in names if _content(before / name) != _content(now / name)]


def take_snapshot(folder: Path) -> str:
    """Copy the package that runs now into a new folder, which only its owner can enter, and return the copy's hash.

    Raises:
        FileExistsError: The folder is there already.
        OSError: It cannot be written.
    """
    files.make_private_dir(folder)
    _copy(PACKAGE, folder / NAME)
    for kind in ("template", "profile"):
        source = assets.shipped_folder(kind)
        if source.is_dir() and source.parent != PACKAGE:
            _copy(source, folder / NAME / source.name)
    return code_hash(folder / NAME)


def replace_snapshot(folder: Path) -> str:
    """Put a copy of the package that runs now in the place of an older one, which is kept beside it.

    Raises:
        OSError: It cannot be written.
    """
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        new = take_snapshot(staging)
        if folder.exists():
            kept = folder.with_name(f"{folder.name}-before-{code_hash(folder / NAME)[:12] or 'unknown'}")
            shutil.rmtree(kept, ignore_errors=True)
            folder.rename(kept)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return new


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a package without what Python and editors leave there."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
        if not hidden and path.is_file():
            yield path


def _copy(source: Path, target: Path) -> None:
    """Copy files one by one: modes of the source, such as a group's right to write, do not come along."""
    names = [path.relative_to(source) for path in _files(source)]
    for parent in sorted({parent for name in names for parent in name.parents}):
        (target / parent).mkdir(mode=files.PRIVATE_DIR_MODE)
    for name in names:
        shutil.copyfile(source / name, target / name)
        (target / name).chmod(_FILE_MODE)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
