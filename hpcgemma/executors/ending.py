"""Ending a run's jobs."""

from __future__ import annotations

import contextlib
import os
import signal

from hpcgemma.runs import store, tracking
from hpcgemma.runs.state import current_job_id
from hpcgemma.runs.store import RunEntry
from hpcgemma.slurm import reasons
from hpcgemma.slurm.client import SlurmClient


def cancel_run(entry: RunEntry, client: SlurmClient) -> None:
    """Record that the user wants the end, so that nothing revives the run, then end every job of it.

    Raises:
        SchedulerError: Slurm does not answer; the wish is recorded, and a running supervisor sees it.
    """
    events = entry.folder.events()
    job_id = current_job_id(events)
    entry.folder.record("cancelled", job_id=job_id)
    if entry.scheduler == "none":
        job = tracking.local_job(entry, job_id).job
        if job is not None and job.state == "RUNNING":
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit's controller passes it on to the supervisor
        return
    jobs = client.jobs(store.job_ids(entry.folder))
    own = [
        each.job_id for each in jobs.values() if tracking.is_own_job(entry, each) and not reasons.is_final(each.state)
    ]
    if own:
        client.cancel(own)
