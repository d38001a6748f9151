"""Submitting through submitit, with our own script in place of submitit's."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core import utils
from submitit.core.core import Job
from submitit.slurm.slurm import SlurmJob

from hpcgemma import files
from hpcgemma.errors import SchedulerError
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.submission import submit_once


class SlurmExecutor(submitit.SlurmExecutor):
    """submitit's executor with three things replaced: the script, the call of sbatch, and arrays (refused).

    Both replaced methods are private in submitit, which is why its version is pinned.

    Args:
        submitit_dir: Folder of submitit's own files.
        command: Command line of submitit's worker, which the script runs.
        script_file: Where the script is written.
        render: Makes the script of the command line that it is to run.
        comment: What marks the job.
        known: Ids of earlier jobs with this mark.
        client: Runs sbatch.

    Raises:
        SchedulerError: Slurm is not installed on this machine.
    """

    def __init__(
        self,
        *,
        submitit_dir: Path,
        command: Sequence[str],
        script_file: Path,
        render: Callable[[Sequence[str]], str],
        comment: str,
        known: Sequence[str],
        client: SlurmClient,
    ) -> None:
        if self.affinity() < 0:
            raise SchedulerError(
                "Slurm's commands were not found on this machine",
                "run on a login node (perhaps after `module load slurm`), or use --profile local",
            )
        super().__init__(submitit_dir)
        self.command, self.script_file, self.render = command, script_file, render
        self.comment, self.known, self.client = comment, known, client

    @property
    def _submitit_command_str(self) -> str:
        return shlex.join(self.command)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self.render(shlex.split(command))

    def _submit_command(self, command: str) -> Job[Any]:
        """Write the script, call sbatch once, and if its answer was lost look for the job it may have made."""
        files.write_atomically(self.script_file, self._make_submission_file_text(command, ""))
        job_id = submit_once(self.client, self.script_file, comment=self.comment, known=self.known)
        return SlurmJob(folder=self.folder, job_id=job_id, tasks=[0])

    def _internal_process_submissions(self, delayed_submissions: Sequence[utils.DelayedSubmission]) -> list[Job[Any]]:
        if len(delayed_submissions) != 1:
            raise ValueError("one run is one job; submitit would make an array with a script of its own")
        jobs: list[Job[Any]] = super()._internal_process_submissions(list(delayed_submissions))
        return jobs
