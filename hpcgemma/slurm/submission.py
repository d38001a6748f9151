"""Submitting a job exactly once, also when sbatch's answer is lost."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path

from hpcgemma.errors import SchedulerError
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.refusals import SubmitTimeout

LOOK_FOR_S = 30.0
"""Seconds for which a job is looked for while Slurm does not answer."""
_LOOK_EVERY_S = 1.0
_MISSES_FOR_ABSENT = 3
"""Answers in a row without the job, after which it was never made: a recovering controller takes a moment."""


def submit_once(
    client: SlurmClient,
    script: Path,
    *,
    comment: str,
    dependency: str | None = None,
    signal: str | None = None,
    exclude: Sequence[str] = (),
    known: Collection[str] = (),
) -> str:
    """Submit a script and return its job's id; where the answer was lost, look for the job before trying again.

    Args:
        client: Runs Slurm's commands.
        script: The job script.
        comment: What marks the jobs of this run; nobody else's have it.
        dependency: The id of a job that must have ended before, or a condition in Slurm's words.
        signal: The warning in the place of the script's, in sbatch's form.
        exclude: Nodes that the job is not to have, in the place of the script's; none: those of the script.
        known: The run's earlier jobs, which are not the one looked for.

    Raises:
        SubmitRefused: Slurm refused it; no job exists.
        SubmitTimeout: Slurm stayed silent, or the second answer was lost too: the job may exist.
        SchedulerError: The controller could not be reached; no job exists.
    """
    try:
        return client.submit(script, dependency=dependency, signal=signal, exclude=exclude)
    except SubmitTimeout as lost:
        deadline = time.monotonic() + LOOK_FOR_S
        misses = 0
        while misses < _MISSES_FOR_ABSENT:
            try:
                found = [job.job_id for job in client.find_by_comment(comment) if job.job_id not in known]
            except SchedulerError:
                misses = 0
                if time.monotonic() > deadline:
                    raise lost from None
            else:
                if found:
                    return found[-1]
                misses += 1
            time.sleep(_LOOK_EVERY_S)
        return client.submit(script, dependency=dependency, signal=signal, exclude=exclude)
