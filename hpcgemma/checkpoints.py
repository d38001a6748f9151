"""Checkpoints: staged, described by a manifest, renamed into place, verified by reading. No torch.

A checkpoint is a folder ``step-<n>`` whose ``manifest.json`` lists every file with size and SHA-256. It is written
under another name and renamed once it is on the disk, so a folder of this name is complete or damaged later. "The
latest" is never stored: it is the highest step that verifies. Order comes from the step, never from file times,
which a copy or a wrong clock changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcgemma import files

FORMAT = 1
"""Version of the manifest."""

MANIFEST_NAME = "manifest.json"

_STEP_NAME = re.compile(r"step-(\d+)")
_STAGING_PREFIX = ".staging-"
_BAD_PREFIX = "bad-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint folder and what its manifest says of it."""

    path: Path
    step: int
    """Optimizer steps taken, from the folder's name, which a sound manifest repeats."""
    samples: int
    """Training rows consumed."""
    manifest: dict[str, Any]
    """The manifest as read; empty where it is missing or no JSON object."""

    @property
    def run_id(self) -> str:
        """The run that wrote it."""
        return str(self.manifest.get("run_id", ""))

    @property
    def recipe_fingerprint(self) -> str:
        """What of the recipe decides the weights, as a hash."""
        return str(self.manifest.get("recipe_fingerprint", ""))

    @property
    def total_bytes(self) -> int:
        """Bytes of its files."""
        return sum(int(entry["size"]) for entry in self.manifest.get("files", {}).values())


SetAside = Callable[[Checkpoint, str], None]
"""Told of a damaged checkpoint under its new name, and what is wrong with it."""


def find_checkpoints(directory: Path) -> list[Checkpoint]:
    """Return the checkpoints of a folder whose manifest can be read, lowest step first; none is verified."""
    return [found for found in _candidates(directory) if found.manifest]


def checkpoint_at(directory: Path, step: int) -> Checkpoint | None:
    """Return the checkpoint of a step, however damaged, or None where there is none."""
    return next((each for each in _candidates(directory) if each.step == step), None)


def verify(checkpoint: Checkpoint) -> list[str]:
    """Read a checkpoint's files and return what is wrong with it; an empty list means it is whole.

    It reads every byte: sizes and SHA-256 are compared with the manifest, and the manifest with what it was when it
    was written. A file that the manifest does not list is a fault too: who reads weights reads every file of them.
    """
    manifest = checkpoint.manifest
    if not manifest:
        return [f"{MANIFEST_NAME} is missing or is no JSON object"]
    problems = []
    if manifest.get("format") != FORMAT:
        problems.append(f"{MANIFEST_NAME} has format {manifest.get('format')!r}; this version reads {FORMAT}")
    named = _STEP_NAME.fullmatch(checkpoint.path.name)
    if named is None or int(named[1]) != manifest.get("step"):
        problems.append(f"{MANIFEST_NAME} says step {manifest.get('step')!r}; the folder is {checkpoint.path.name}")
    if manifest.get("sha256") != _hash_of(manifest) or not _is_as_written(checkpoint):
        problems.append(f"{MANIFEST_NAME} has changed: its SHA-256 is another")
    entries = manifest.get("files")
    if not isinstance(entries, dict) or not entries:
        return [*problems, f"{MANIFEST_NAME} lists no files"]
    for name, entry in sorted(entries.items()):
        problem = _problem_of_file(checkpoint.path / name, entry)
        if problem:
            problems.append(problem)
    listed = {MANIFEST_NAME, *entries}
    return [*problems, *(f"{name} is not listed in {MANIFEST_NAME}" for name in _names_in(checkpoint.path, listed))]


def latest_checkpoint(directory: Path, set_aside: SetAside | None = None) -> Checkpoint | None:
    """Return the newest checkpoint that verifies, or None.

    Args:
        directory: Folder of the checkpoints.
        set_aside: Called for each damaged one, after it was renamed to ``bad-step-<n>``. None changes nothing on
            the disk, which is right for everybody but the trainer.
    """
    for candidate in reversed(_candidates(directory)):
        problems = verify(candidate)
        if not problems:
            return candidate
        if set_aside is not None:
            set_aside(put_aside(candidate), "; ".join(problems))
    return None


def put_aside(checkpoint: Checkpoint) -> Checkpoint:
    """Rename a damaged checkpoint so that nobody takes it for a good one, and return it under its new name."""
    base = f"{_BAD_PREFIX}{checkpoint.path.name}"
    names = [base, *(f"{base}-{count}" for count in range(2, 1000))]
    target = next(path for path in map(checkpoint.path.with_name, names) if not path.exists())
    checkpoint.path.rename(target)
    files.fsync_path(target.parent)
    return Checkpoint(path=target, step=checkpoint.step, samples=checkpoint.samples, manifest=checkpoint.manifest)


def stage(directory: Path, step: int) -> Path:
    """Create and return an empty folder to write a checkpoint into; leftovers of earlier ones are removed.

    Only one process, rank 0 of the one attempt that runs, may do this. No two of its folders have one name: what could
    not be removed of one is never mixed with the next, nor what another node still believes to be there (NFS).
    """
    remove_staging(directory)
    staging = directory / f"{_STAGING_PREFIX}step-{step}.{os.getpid()}-{time.monotonic_ns()}"
    files.make_private_dir(staging)
    return staging


def remove_staging(directory: Path) -> None:
    """Remove what a killed or failed save left behind; what the disk does not let go stays until a later save."""
    with contextlib.suppress(OSError):
        for leftover in directory.glob(f"{_STAGING_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def commit(
    staging: Path, *, step: int, samples: int, run_id: str, recipe_fingerprint: str, world_size: int
) -> Checkpoint:
    """Turn a staged folder into the checkpoint of a step: flush, describe, rename, read back.

    A folder that already has the name of this step is put aside. So is what does not read back, unless one of this step
    is there to look at already: then it is left as it was staged, to be removed.

    Args:
        staging: What ``stage`` returned, its files written.
        step: Optimizer steps taken.
        samples: Training rows consumed.
        run_id: Identity of the run.
        recipe_fingerprint: What of the recipe decides the weights, as a hash.
        world_size: Ranks that trained; for information, a resume may have others.

    Raises:
        OSError: The disk refused, or what was read back is not what was written.
    """
    names = sorted(str(path.relative_to(staging)) for path in staging.rglob("*") if path.is_file())
    entries = {}
    for name in names:
        files.fsync_path(staging / name)
        entries[name] = {"size": (staging / name).stat().st_size, "sha256": files.sha256_of(staging / name)}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "run_id": run_id,
        "step": step,
        "samples": samples,
        "world_size": world_size,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "recipe_fingerprint": recipe_fingerprint,
        "files": entries,
    }
    manifest["sha256"] = _hash_of(manifest)
    files.write_atomically(staging / MANIFEST_NAME, _text_of(manifest))
    for folder in {path.parent for path in staging.rglob("*")}:
        files.fsync_path(folder)
    target = staging.with_name(f"step-{step}")
    if target.exists():
        put_aside(_read(target, step))
    staging.rename(target)
    files.fsync_path(target.parent)
    checkpoint = _read(target, step)
    problems = verify(checkpoint)
    if problems:
        if target.with_name(f"{_BAD_PREFIX}{target.name}").exists():
            target.rename(staging)  # one is enough to look at, and a save that is tried again would leave many
        else:
            put_aside(checkpoint)
        raise OSError(f"{target} does not read back as it was written: {'; '.join(problems)}")
    return checkpoint


def prune(
    directory: Path, *, keep: int, protect: Collection[int] = (), verified: Collection[Path] = ()
) -> list[Checkpoint]:
    """Delete old checkpoints and return them; two that verify always stay.

    Args:
        directory: Folder of the checkpoints.
        keep: Newest ones to keep.
        protect: Steps to keep besides, such as the best.
        verified: Folders known to verify, which are not read again.

    Raises:
        OSError: The disk refused to delete some of them; the others are deleted.
    """
    kept, doomed = 0, []
    for each in reversed(_candidates(directory)):
        if kept >= max(keep, 2):
            if each.step not in protect:
                doomed.append(each)
        elif each.path in verified or not verify(each):
            kept += 1
    refused: OSError | None = None
    for checkpoint in reversed(doomed):
        # The name goes first: a deletion that is cut short leaves nothing that looks like a checkpoint.
        grave = checkpoint.path.with_name(f"{_STAGING_PREFIX}deleted-{checkpoint.path.name}.{os.getpid()}")
        try:
            checkpoint.path.rename(grave)
        except OSError as error:
            refused = refused or error
            continue
        shutil.rmtree(grave, ignore_errors=True)
    if refused is not None:
        raise refused
    return doomed[::-1]


def _candidates(directory: Path) -> list[Checkpoint]:
    """Return every folder named like a checkpoint, lowest step first, however damaged."""
    try:
        paths = list(directory.iterdir())
    except FileNotFoundError:
        return []
    named = ((path, _STEP_NAME.fullmatch(path.name)) for path in paths)
    found = [_read(path, int(match[1])) for path, match in named if match and path.is_dir()]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _read(path: Path, named_step: int) -> Checkpoint:
    try:
        manifest = json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8"))
        samples = int(manifest["samples"])
        sizes = [int(entry["size"]) for entry in manifest["files"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return Checkpoint(path=path, step=named_step, samples=0, manifest={})
    if min(samples, *sizes, 0) < 0:
        return Checkpoint(path=path, step=named_step, samples=0, manifest={})
    return Checkpoint(path=path, step=named_step, samples=samples, manifest=manifest)


def _hash_of(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its own hash."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _text_of(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1) + "\n"


def _is_as_written(checkpoint: Checkpoint) -> bool:
    """Whether the manifest is byte for byte what its content was written as; JSON alone would forgive a lost end."""
    try:
        return (checkpoint.path / MANIFEST_NAME).read_bytes() == _text_of(checkpoint.manifest).encode()
    except OSError:
        return False


def _names_in(folder: Path, besides: Collection[str]) -> list[str]:
    """Return the files of a folder but for some; hidden ones do not count, which file systems make themselves."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return sorted(name for name in names.difference(besides) if not Path(name).name.startswith("."))


def _problem_of_file(path: Path, entry: dict[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return f"{path.name} has {size} bytes, not {entry['size']}"
        if files.sha256_of(path) != entry.get("sha256"):
            return f"{path.name} has changed: its SHA-256 is another"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None
