"""What Slurm is told to do: how its commands are called. Pure; ``client.py`` runs them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hpcgemma.slurm.commands import is_job_id

# A job started again on the same node in the second in which its last run was ended is killed there: "Job credential
# revoked", FAILED 1:0, not requeued (seen on 22.05.8). More than that second, in case the clocks differ.
SAFE_REQUEUE_WAIT_S = 5


def requeue_argv(job_id: str) -> list[str]:
    """Return the call that puts a job back into the queue; a running one is ended."""
    return ["scontrol", "requeue", job_id]


def start_now_argv(job_id: str) -> list[str]:
    """Return the call that ends the wait of a requeued job in a few seconds; it works once the job is pending."""
    return ["scontrol", "update", f"JobId={job_id}", f"StartTime=now+{SAFE_REQUEUE_WAIT_S}"]


def set_time_limit_argv(job_id: str, minutes: int) -> list[str]:
    """Return the call that gives a job another time limit, counted from its start.

    Anybody may shorten the limit of a job of their own, and lengthen that of a pending one again; of a running one only
    an administrator may (22.05.8).
    """
    return ["scontrol", "update", f"JobId={job_id}", f"TimeLimit={minutes}"]


def exclude_argv(job_id: str, nodes: Sequence[str]) -> list[str]:
    """Return the call that keeps a job from nodes; it must be pending, or just requeued."""
    return ["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(nodes)}"]


def sbatch_argv(
    script: Path,
    dependency: str | None = None,
    signal: str | None = None,
    exclude: Sequence[str] = (),
    *,
    test_only: bool = False,
) -> list[str]:
    """Return the call that submits a script.

    Args:
        script: The job script.
        dependency: The id of a job that must have ended, however it ended; or a condition in Slurm's own
            words. Slurm takes an id it does not know any more as ended.
        signal: The warning in the place of the script's, as ``B:USR2@300``.
        exclude: Nodes that the job is not to have, in the place of the script's; none: those of the script.
        test_only: Ask only whether it could run.
    """
    argv = ["sbatch", "--parsable", *(["--test-only"] if test_only else [])]
    if signal is not None:
        argv.append(f"--signal={signal}")
    if exclude:
        argv.append(f"--exclude={','.join(exclude)}")
    if dependency is not None:
        condition = f"afterany:{dependency}" if is_job_id(dependency) else dependency
        argv.append(f"--dependency={condition}")
    return [*argv, str(script)]


def parse_sbatch(output: str) -> str | None:
    """Return the job id that sbatch printed, with or without ``--parsable``; None if it printed none.

    Sites may print greetings around it, so the last line that is an answer counts.
    """
    for line in reversed(output.splitlines()):
        match = re.fullmatch(r"(?:Submitted batch job )?(\d+)(?:;\S+| on cluster \S+)?", line.strip())
        if match:
            return match.group(1)
    return None


def scancel_argv(job_ids: Sequence[str]) -> list[str]:
    """Return the call that cancels jobs; ids that Slurm does not know any more do no harm."""
    return ["scancel", *job_ids]


def signal_batch_argv(job_id: str, signal: str) -> list[str]:
    """Return the call that sends a signal to a job's batch script, and to no rank.

    KILL ends the job as FAILED. Without ``--batch``, and with ``--full`` too, KILL would cancel it, SIGTERM first and
    KillWait before the end (22.05.8).
    """
    return ["scancel", f"--signal={signal}", "--batch", job_id]


def signal_step_argv(step_id: str, signal: str) -> list[str]:
    """Return the call that sends a signal to the ranks of a step."""
    return ["scancel", f"--signal={signal}", step_id]
