"""A job that does one command's work, and belongs to no run: its folder, and what is written there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcgemma import files
from hpcgemma.errors import InputError
from hpcgemma.runs import store

JOBS_NAME = ".jobs"
"""Beside the run folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a job is to do."""

    program: str
    """Program of the trainer."""
    request: Mapping[str, Any]
    """What it is asked, as JSON has it."""
    ranks: int
    """Processes that it runs in, one per GPU."""
    cpus_per_rank: int | None


@dataclass(frozen=True, slots=True)
class CommandJob:
    """Every path of one job.

    Args:
        path: Its folder, absolute.
    """

    path: Path

    @property
    def request_file(self) -> Path:
        """Which program of the trainer runs, and what it is asked, as JSON."""
        return self.path / "request.json"

    @property
    def script_file(self) -> Path:
        """The job script as it was submitted."""
        return self.path / "job.sbatch"

    @property
    def outcome_file(self) -> Path:
        """How the program ended, as JSON; absent where it was killed."""
        return self.path / "outcome.json"

    @property
    def submitit_dir(self) -> Path:
        """Submitit's own files."""
        return self.path / "submitit"

    def log_file(self, job_id: str) -> Path:
        """Return the file of all that the job prints."""
        return self.path / f"{job_id}.log"

    def request(self) -> Request:
        """Return what the job is to do."""
        return Request(**json.loads(self.request_file.read_text(encoding="utf-8")))

    def end(self, exit_code: int) -> None:
        """Write how the program ended."""
        files.write_atomically(self.outcome_file, json.dumps({"exit_code": exit_code}))

    def exit_code(self) -> int | None:
        """Return how the program ended; None where it has not, or was killed."""
        try:
            return int(json.loads(self.outcome_file.read_text(encoding="utf-8"))["exit_code"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def discard(self) -> None:
        """Remove a job that never reached the scheduler."""
        shutil.rmtree(self.path, ignore_errors=True)


def planned_job(runs_dir: Path, name: str) -> CommandJob:
    """Return where a new job's folder would be: its name, with the lowest number that is free."""
    jobs_dir = runs_dir / JOBS_NAME
    return CommandJob(jobs_dir / store.free_name(jobs_dir, name))


def create_job(job: CommandJob, request: Request) -> None:
    """Create a job's folder, with its request.

    Raises:
        InputError: It cannot be written.
    """
    try:
        job.path.parent.mkdir(mode=files.PRIVATE_DIR_MODE, parents=True, exist_ok=True)
        files.make_private_dir(job.path)
    except FileExistsError as error:  # not ours to discard
        raise InputError(f"{job.path} is being made by another hpcgemma at this moment", "call it again") from error
    except OSError as error:
        raise _unwritable(job, error) from error
    try:
        job.submitit_dir.mkdir(mode=files.PRIVATE_DIR_MODE)
        files.write_atomically(job.request_file, json.dumps(asdict(request), indent=1))
    except OSError as error:
        job.discard()
        raise _unwritable(job, error) from error


def _unwritable(job: CommandJob, error: OSError) -> InputError:
    return InputError(
        f"the folder {job.path} cannot be written: {error.strerror}",
        "free some space, or choose another folder with --runs-dir or HPCGEMMA_RUNS_DIR",
    )
