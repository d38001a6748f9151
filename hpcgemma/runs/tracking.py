"""Asking the scheduler about runs: one question for all of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from hpcgemma.errors import InputError, SchedulerError
from hpcgemma.processes import boot_id, process_start_ticks
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.state import RunState, SchedulerAnswer, current_job_id, decide_state, has_ended, waiting_links
from hpcgemma.runs.store import RunEntry, note_job
from hpcgemma.slurm import reasons
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.records import JobRecord

_BEING_SUBMITTED_S = 120


def track(entries: Sequence[RunEntry], client: SlurmClient) -> list[RunState]:
    """Return the states of runs, in their order.

    Slurm is asked once for all of them that it can still say something of; where it does not answer, their state is
    unknown, never failed.
    """
    lost = {entry.run_id: _adopt_lost_job(entry, client) for entry in entries}
    events = [entry.folder.events() for entry in entries]
    current = [current_job_id(each) for each in events]
    links = [waiting_links(each) for each in events]
    asked = [
        each
        for entry, job_id, ahead, run_events in zip(entries, current, links, events, strict=True)
        if entry.scheduler == "slurm" and job_id and not has_ended(run_events)
        for each in (job_id, *ahead)
    ]
    jobs: dict[str, JobRecord] = {}
    problem = ""
    if asked:
        try:
            jobs = client.jobs(asked)
        except (SchedulerError, InputError) as error:
            problem = error.problem
    states = []
    for entry, run_events, job_id, ahead in zip(entries, events, current, links, strict=True):
        if entry.scheduler == "none":
            answer = local_job(entry, job_id)
        else:
            known = [jobs[each] for each in (job_id, *ahead) if each in jobs and is_own_job(entry, jobs[each])]
            answer = SchedulerAnswer(job=_in_charge(known, job_id), problem=problem or lost[entry.run_id])
        states.append(decide_state(entry.name, run_events, answer, time.time()))
    return states


def _in_charge(jobs: Sequence[JobRecord], current: str | None) -> JobRecord | None:
    """Return the first of a run's jobs that has not ended; where all have, the one that worked on it last."""
    alive = (job for job in jobs if not reasons.is_final(job.state))
    return next(alive, next((job for job in jobs if job.job_id == current), None))


def _adopt_lost_job(entry: RunEntry, client: SlurmClient) -> str:
    """Find the job of a submission whose answer was lost, and enter it as if the answer had come.

    submitit's pickle still lies under its temporary name; the job looks for it under its own id for a minute.

    Returns:
        Why it is not known whether there is such a job; empty where it is known.
    """
    folder = entry.folder
    if entry.scheduler != "slurm" or current_job_id(folder.events()) is not None:
        return ""
    if time.time() - entry.created < _BEING_SUBMITTED_S and not folder.script_file.exists():
        return "it is being submitted at this moment"
    try:
        found = client.find_by_comment(entry.comment)
        if found:
            job_id = found[-1].job_id
            for pickle in folder.submitit_dir.glob("*.pkl"):
                link_pickle(folder, pickle, job_id)
            folder.record("submitted", job_id=job_id, by="launcher", profile=entry.profile)
            note_job(entry, job_id)
    except SchedulerError as error:
        return error.problem
    except OSError as error:
        return f"its job cannot be taken over: {error}"
    return ""


def link_pickle(folder: RunFolder, pickle: Path, job_id: str) -> None:
    """Give submitit's pickle the name under which the worker of a job looks for it."""
    target = folder.submitit_dir / f"{job_id}_submitted.pkl"
    if not target.exists():
        os.link(pickle, target)


def is_own_job(entry: RunEntry, job: JobRecord) -> bool:
    """Return whether a job is the run's, or its id was given to somebody else's job since.

    The accounting tells comments only where the site stores them, so there none is no proof against it.
    """
    return job.comment == entry.comment or (job.comment == "" and job.source == "sacct")


def write_local_job(folder: RunFolder, pid: int) -> None:
    """Note which process a local job is, so that another with the same number is never taken for it."""
    facts = {"pid": pid, "start_ticks": process_start_ticks(pid), "boot": boot_id(), "host": os.uname().nodename}
    (folder.submitit_dir / f"{pid}.json").write_text(json.dumps(facts), encoding="utf-8")


def local_job(entry: RunEntry, job_id: str | None) -> SchedulerAnswer:
    """Return a local job in Slurm's terms: RUNNING while its process lives, else COMPLETED."""
    if job_id is None:
        return SchedulerAnswer()
    host = os.uname().nodename
    try:
        facts = json.loads((entry.folder.submitit_dir / f"{job_id}.json").read_text(encoding="utf-8"))
        if facts["host"] != host:
            return SchedulerAnswer(problem=f"it was started on {facts['host']}; only there can its process be seen")
        same = facts["boot"] == boot_id() and facts["start_ticks"] == process_start_ticks(facts["pid"])
        alive = same and facts["start_ticks"] is not None
    except (OSError, ValueError, KeyError, TypeError):
        alive = False
    return SchedulerAnswer(
        job=JobRecord(
            job_id=job_id,
            name=entry.name,
            state="RUNNING" if alive else "COMPLETED",
            node_list=host,
            nodes=1,
            comment=entry.comment,
            source="process",
        )
    )


def end_requeue_wait(entry: RunEntry, state: RunState, client: SlurmClient) -> bool:
    """Let a requeued job start now instead of after Slurm's two minutes; return whether it was asked for.

    Once per requeue: asked again a moment later, it would only put the start off by some seconds.

    Only from outside, and only once the job is PENDING: while it is COMPLETING the request is accepted and has no
    effect (seen on Slurm 22.05). A start time that the user chose is never touched: only a job that was requeued.
    """
    job = state.job
    if job is None or state.job_id is None or job.reason != "BeginTime" or not state.is_requeued:
        return False
    try:
        client.start_now(state.job_id)
    except SchedulerError:
        return False
    entry.folder.record("hastened", job_id=state.job_id)
    return True
