"""Asking the scheduler about runs: one question for all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from hpcgemma.errors import SchedulerError
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.state import RunState, SchedulerAnswer, current_job_id, decide_state
from hpcgemma.runs.store import RunEntry, note_job
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.records import JobRecord


def track(entries: Sequence[RunEntry], client: SlurmClient) -> list[RunState]:
    """Return the states of runs, in their order.

    Slurm is asked once for all of them; where it does not answer, their state is unknown, never failed.
    """
    for entry in entries:
        _adopt_lost_job(entry, client)
    events = [entry.folder.events() for entry in entries]
    current = [current_job_id(each) for each in events]
    asked = [job_id for entry, job_id in zip(entries, current, strict=True) if entry.scheduler == "slurm" and job_id]
    jobs: dict[str, JobRecord] = {}
    problem = ""
    if asked:
        try:
            jobs = client.jobs(asked)
        except SchedulerError as error:
            problem = error.problem
    states = []
    for entry, run_events, job_id in zip(entries, events, current, strict=True):
        if entry.scheduler == "none":
            answer = SchedulerAnswer(job=local_job(entry, job_id))
        else:
            answer = SchedulerAnswer(job=_own_job(entry, jobs.get(job_id or "")), problem=problem)
        states.append(decide_state(entry.name, run_events, answer))
    return states


def _adopt_lost_job(entry: RunEntry, client: SlurmClient) -> None:
    """Find the job of a submission whose answer was lost, and enter it as if the answer had come.

    submitit's pickle still lies under its temporary name; the job looks for it under its own id for a minute.
    """
    folder = entry.folder
    if entry.scheduler != "slurm" or current_job_id(folder.events()) is not None:
        return
    try:
        found = client.find_by_comment(entry.comment)
    except SchedulerError:
        return
    if found:
        job_id = found[-1].job_id
        for pickle in folder.submitit_dir.glob("*.pkl"):
            link_pickle(folder, pickle, job_id)
        folder.record("submitted", job_id=job_id, by="launcher", profile=entry.profile)
        note_job(entry, job_id)


def link_pickle(folder: RunFolder, pickle: Path, job_id: str) -> None:
    """Give submitit's pickle the name under which the worker of a job looks for it."""
    target = folder.submitit_dir / f"{job_id}_submitted.pkl"
    if not target.exists():
        os.link(pickle, target)


def _own_job(entry: RunEntry, job: JobRecord | None) -> JobRecord | None:
    """Return the job unless its comment shows that its id was given to somebody else's job since."""
    foreign = job is not None and job.comment not in ("", "(null)", entry.comment)
    return None if foreign else job


def process_start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot (proc(5)); None where it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def write_local_job(folder: RunFolder, pid: int) -> None:
    """Note which process a local job is, so that another with the same number is never taken for it."""
    facts = {"pid": pid, "start_ticks": process_start_ticks(pid), "boot": _boot_id()}
    (folder.submitit_dir / f"{pid}.json").write_text(json.dumps(facts), encoding="utf-8")


def local_job(entry: RunEntry, job_id: str | None) -> JobRecord | None:
    """Return a local job in Slurm's terms: RUNNING while its process lives, else COMPLETED."""
    if job_id is None:
        return None
    try:
        facts = json.loads((entry.folder.submitit_dir / f"{job_id}.json").read_text(encoding="utf-8"))
        same = facts["boot"] == _boot_id() and facts["start_ticks"] == process_start_ticks(facts["pid"])
        alive = same and facts["start_ticks"] is not None
    except (OSError, ValueError, KeyError):
        alive = False
    return JobRecord(
        job_id=job_id,
        name=entry.name,
        state="RUNNING" if alive else "COMPLETED",
        node_list=os.uname().nodename,
        nodes=1,
        comment=entry.comment,
        source="process",
    )


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


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
