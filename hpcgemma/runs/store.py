"""Creating runs, and finding them again by name, job id or path."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from hpcgemma import assets, files, snapshot
from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.runs.folder import RunFolder

SCHEMA_VERSION = 1
"""Version of run.yaml."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEntry:
    """What the index knows of a run: enough to find its folder and ask its scheduler."""

    run_id: str
    name: str
    path: str
    profile: str
    recipe: str
    scheduler: str
    created: float
    """Seconds since 1970, UTC."""

    @property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(Path(self.path))

    @property
    def comment(self) -> str:
        """What marks this run's Slurm jobs."""
        return f"hpcgemma:{self.run_id}"


def new_run_id() -> str:
    """Return a fresh identity for a run: 12 hexadecimal digits."""
    return uuid.uuid4().hex[:12]


def free_name(runs_dir: Path, recipe: str) -> str:
    """Return the recipe's name with the lowest number that no run in the folder has yet."""
    taken = {entry.name for entry in runs_dir.iterdir()} if runs_dir.is_dir() else set()
    number = 1
    while f"{recipe}-{number}" in taken:
        number += 1
    return f"{recipe}-{number}"


def create_run(entry: RunEntry, content: dict[str, Any]) -> RunFolder:
    """Create the run folder with its run.yaml and a copy of hpcgemma, and enter it into the index.

    Args:
        entry: The run.
        content: The content of run.yaml; the hash of the copy is added to its versions.

    Raises:
        InputError: The name is taken, or the folder cannot be written.
    """
    folder = entry.folder
    try:
        files.make_private_dir(folder.path)
    except FileExistsError as error:
        raise InputError(
            f"a run named {entry.name!r} exists already in {folder.path.parent}",
            f"hpcgemma status {entry.name}  (or choose another --name; to go on with it: hpcgemma resume {entry.name})",
        ) from error
    except OSError as error:
        raise InputError(
            f"the run folder {folder.path} cannot be created: {error.strerror}",
            "choose another folder with --runs-dir or HPCGEMMA_RUNS_DIR",
        ) from error
    try:
        for path in (folder.attempts_dir, folder.checkpoints_dir, folder.heartbeat_dir, folder.submitit_dir):
            path.mkdir(mode=files.PRIVATE_DIR_MODE)
        content["versions"]["code"] = snapshot.take_snapshot(folder.code_dir)
        files.write_atomically(folder.run_file, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        _write_index(entry)
    except OSError as error:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise InputError(
            f"the run folder {folder.path} cannot be written: {error.strerror}",
            "free some space, or choose another folder with --runs-dir or HPCGEMMA_RUNS_DIR",
        ) from error
    return folder


@contextlib.contextmanager
def sole_submitter(entry: RunEntry) -> Iterator[None]:
    """Keep two terminals from submitting one run at once; where the file system has no locks, hope for the best.

    Raises:
        InputError: Another process is submitting the run now.
    """
    with (entry.folder.submitit_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"run {entry.name} is being submitted by another hpcgemma at this moment",
                f"hpcgemma status {entry.name}",
            ) from error
        except OSError:
            pass  # Lustre may be mounted without flock
        yield


def discard_run(entry: RunEntry) -> None:
    """Remove a run that never reached the scheduler."""
    shutil.rmtree(entry.path, ignore_errors=True)
    _index_file(entry.run_id).unlink(missing_ok=True)


def read_run_file(folder: RunFolder) -> dict[str, Any]:
    """Return the content of run.yaml.

    Raises:
        HpcGemmaError: It is missing or broken.
    """
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        content = yaml.load(folder.run_file.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 - safe loaders
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HpcGemmaError(f"{folder.run_file} cannot be read: {error}", "is this a run folder?") from error
    if not isinstance(content, dict) or not isinstance(content.get("plan"), dict) or "run_id" not in content:
        raise HpcGemmaError(f"{folder.run_file} is not a run file", "is this a run folder?")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise HpcGemmaError(
            f"{folder.run_file} was written by another version of hpcgemma ({content.get('versions')})",
            "use that version for this run",
        )
    return content


def rewrite_run_file(folder: RunFolder, content: dict[str, Any]) -> None:
    """Replace run.yaml, whole or not at all."""
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    files.write_atomically(folder.run_file, text)


def entry_of(folder: RunFolder) -> RunEntry:
    """Return the index entry of a run folder, read from its run.yaml."""
    content = read_run_file(folder)
    plan = content["plan"]
    return RunEntry(
        run_id=content["run_id"],
        name=plan["run_name"],
        path=str(folder.path),
        profile=plan["profile"],
        recipe=plan["recipe"],
        scheduler=plan["scheduler"],
        created=content["created"],
    )


def note_job(entry: RunEntry, job_id: str) -> None:
    """Enter a job id into the index. A data folder that cannot be written is no failure: events tell as well."""
    try:
        path = _jobs_dir(entry.profile) / job_id
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, entry.run_id)
    except OSError:
        return


def all_runs() -> list[RunEntry]:
    """Return the runs of the index whose folder still exists, newest first."""
    found = []
    for path in (assets.user_data_dir() / "runs").glob("*.json"):
        try:
            entry = RunEntry(**json.loads(path.read_text(encoding="utf-8")))
            if entry.folder.run_file.is_file():
                found.append(entry)
        except (OSError, ValueError, TypeError):
            continue  # a broken entry, or a file system that is away, must not hide the others
    return sorted(found, key=lambda entry: float(entry.created), reverse=True)


def find_runs(word: str) -> list[RunEntry]:
    """Return the runs that a name, job id or run folder stands for, newest first."""
    with contextlib.suppress(OSError, RuntimeError):  # no path at all: too long, somebody else's, an unknown user's
        path = Path(word).expanduser()
        if (path / "run.yaml").is_file():
            return [entry_of(RunFolder(path.resolve()))]
    runs = all_runs()
    named = [entry for entry in runs if word in (entry.name, entry.run_id)]
    if named or not re.fullmatch(r"\d+", word):
        return named
    noted = {file.read_text(encoding="utf-8").strip() for file in _job_notes(word)}
    by_index = [entry for entry in runs if entry.run_id in noted]
    return by_index or [entry for entry in runs if word in job_ids(entry.folder)]


def job_ids(folder: RunFolder) -> list[str]:
    """Return every job id that the run has had, oldest first, without repetition."""
    ids = [str(event["job_id"]) for event in folder.events() if event.get("job_id")]
    return list(dict.fromkeys(ids))


def _write_index(entry: RunEntry) -> None:
    path = _index_file(entry.run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, json.dumps(asdict(entry)))


def _index_file(run_id: str) -> Path:
    return assets.user_data_dir() / "runs" / f"{run_id}.json"


def _jobs_dir(profile: str) -> Path:
    return assets.user_data_dir() / "jobs" / profile


def _job_notes(job_id: str) -> Iterator[Path]:
    root = assets.user_data_dir() / "jobs"
    yield from (path for path in root.glob(f"*{os.sep}{job_id}") if path.is_file())
