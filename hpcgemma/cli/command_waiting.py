"""Watching a job of one command until it ends; the job itself needs no watcher."""

from __future__ import annotations

import time
from pathlib import Path

from hpcgemma.cli import console
from hpcgemma.errors import SchedulerError
from hpcgemma.runs.command_job import CommandJob
from hpcgemma.slurm import reasons
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.records import JobRecord

_LOOK_S = 0.5
"""Seconds between looks at the job's folder, which costs the scheduler nothing."""
_OUTCOME_WITHIN_S = 10.0
"""Seconds in which what a job wrote at its end is seen here: a shared file system remembers what was not there."""


def wait_for_job(job: CommandJob, job_id: str, comment: str, client: SlurmClient, poll_interval_s: float) -> int:
    """Print what a job prints until it ends, and return its program's exit code; 1 where that was ended.

    Ctrl-C stops the watching only.

    Args:
        job: The job's folder.
        job_id: Its id.
        comment: What marks it, since Slurm may use an id twice.
        client: Asks Slurm.
        poll_interval_s: Seconds between questions to Slurm.
    """
    log = _Log(job.log_file(job_id))
    asked, ended_at, said = float("-inf"), None, ""
    try:
        while (code := job.exit_code()) is None:
            log.show()
            now = time.monotonic()
            if now - asked >= poll_interval_s:
                asked = now
                words, is_over = _ask(client, job_id, comment)
                if words != said:
                    console.say(words)
                    said = words
                if is_over and ended_at is not None and now - ended_at > _OUTCOME_WITHIN_S:
                    return 1
                ended_at = (ended_at or now) if is_over else None
            time.sleep(_LOOK_S)
    except KeyboardInterrupt:
        console.say(f"\nThe job goes on without you. Look again: hpcgemma status {job_id}   end it: scancel {job_id}")
        raise
    log.show()
    return code


def _ask(client: SlurmClient, job_id: str, comment: str) -> tuple[str, bool]:
    """Return what Slurm says of a job, and whether it is over."""
    try:
        record = client.jobs([job_id]).get(job_id)
    except SchedulerError as error:
        return f"UNKNOWN {error.problem}", False
    if record is None or record.comment not in (comment, ""):
        return f"UNKNOWN Slurm no longer knows job {job_id}", True
    return _words(record), reasons.is_final(record.state)


def _words(record: JobRecord) -> str:
    if reasons.is_pending(record.state):
        return f"{record.state} {reasons.explain_reason(record.reason).sentence}"
    if not reasons.is_final(record.state) or record.state == "COMPLETED":
        return record.state
    return f"{record.state} {reasons.explain_state(record.state).sentence}"


class _Log:
    """A file that another machine writes.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = 0

    def show(self) -> None:
        """Print the whole lines that have come since, but for what submitit says of itself."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._shown)
                new = file.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._shown += len(whole)
        for line in whole.decode("utf-8", "replace").splitlines():
            if not line.startswith("submitit INFO"):
                console.say(line)
