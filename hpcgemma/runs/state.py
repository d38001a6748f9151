"""A run's state: a pure function of its events and of what the scheduler says of its current job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hpcgemma.slurm import reasons
from hpcgemma.slurm.records import JobRecord
from hpcgemma.walltime import duration


class RunStatus(StrEnum):
    """Where a run stands. The last four are final until somebody resumes it."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    UNKNOWN = "UNKNOWN"
    INTERRUPTED = "INTERRUPTED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"

    @property
    def is_active(self) -> bool:
        """Whether a job is working on the run, or is going to."""
        return self in (RunStatus.PENDING, RunStatus.RUNNING)

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in (
            RunStatus.INTERRUPTED,
            RunStatus.COMPLETED,
            RunStatus.CANCELLED,
            RunStatus.FAILED,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run's status, why, and what to do about it."""

    status: RunStatus
    sentence: str
    hint: str = ""
    job_id: str | None = None
    job: JobRecord | None = None
    is_requeued: bool = False
    """Whether the job is pending because the run put it back into the queue, and nobody has hastened it yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerAnswer:
    """What the scheduler said of one job; `problem` where it could not be asked."""

    job: JobRecord | None = None
    problem: str = ""


Events = Sequence[Mapping[str, Any]]


def current_job_id(events: Events) -> str | None:
    """Return the job that works on the run now, or did last: of its newest submission or continuation."""
    ids = [
        event.get("job_id") for event in _heeded(events) if event.get("event") in ("submitted", "continued", "started")
    ]
    known = [str(job_id) for job_id in ids if job_id is not None]
    return known[-1] if known else None


def job_before(events: Events, job_id: str) -> str | None:
    """Return the job that worked on the run before this one, since the user submitted it; None where none did."""
    ids = [
        str(event["job_id"])
        for event in _since_submission(events)
        if event.get("event") in ("submitted", "continued", "started") and event.get("job_id") is not None
    ]
    return next((each for each in reversed(ids) if each != job_id), None)


def has_ended(events: Events) -> bool:
    """Return whether the run has finished or failed since it was last submitted, whatever its job still does."""
    return any(event.get("event") in ("finished", "failed") for event in _since_submission(events))


def is_superseded(events: Events, job_id: str) -> bool | None:
    """Return whether a job must leave the run alone: another took over, or the run ended after its submission.

    Returns:
        None where nothing is recorded of the job yet.
    """
    if not any(str(event.get("job_id")) == job_id for event in events):
        return None
    words = [event for event in events if event.get("event") in ("submitted", "finished", "failed", "cancelled")]
    is_over = bool(words) and words[-1].get("event") != "submitted"
    return is_over or (current_job_id(events) != job_id and job_id not in waiting_links(events))


def waiting_links(events: Events) -> list[str]:
    """Return the jobs that were queued ahead for the run and have not had their turn, the next one first."""
    recent = _since_submission(events)
    links = [str(event.get("job_id")) for event in recent if event.get("event") == "linked"]
    used = {str(event.get("job_id")) for event in recent if event.get("event") in ("continued", "started")}
    passed = max((index for index, job_id in enumerate(links) if job_id in used), default=-1)
    return links[passed + 1 :]


def wanted_links(events: Events) -> int:
    """Return how many jobs the user wants the run to have; 0 for as many as it takes."""
    recent = _since_submission(events)
    return int(recent[0].get("links") or 0) if recent else 0


def chain_position(events: Events, job_id: str | None) -> tuple[int, int] | None:
    """Return which link of a run's chain a job is, from 1, and how many there are; None where it is none."""
    recent = _since_submission(events)
    jobs = [str(event.get("job_id")) for event in recent if event.get("event") in ("submitted", "linked")]
    return (jobs.index(job_id) + 1, len(jobs)) if job_id in jobs and len(jobs) > 1 else None


def count_attempts(events: Events) -> int:
    """Return how often the ranks were started."""
    return sum(event.get("event") == "started" for event in events)


def decide_state(name: str, events: Events, answer: SchedulerAnswer, now: float | None = None) -> RunState:
    """Return the state of a run.

    Args:
        name: Name of the run, for the hints.
        events: Its events, oldest first.
        answer: The scheduler's word on `current_job_id(events)`, or on the link that takes its place.
        now: Seconds since 1970, for the age of what is known; None leaves the age out.
    """
    job = answer.job
    job_id = current_job_id(events) if job is None else job.job_id
    resume = f"hpcgemma resume {name}"
    logs = f"hpcgemma logs {name}"

    def state(status: RunStatus, sentence: str, hint: str = "") -> RunState:
        return RunState(status=status, sentence=sentence, hint=hint, job_id=job_id, job=job, is_requeued=requeued)

    recent = _since_submission(events)
    moves = [event for event in recent if event.get("event") in ("continued", "hastened")]
    requeued = bool(moves) and moves[-1].get("by") == "requeue"
    ended = {str(event.get("event")): event for event in recent}
    if "finished" in ended:
        return state(RunStatus.COMPLETED, f"finished at step {ended['finished'].get('step')}")
    if "failed" in ended:
        failure = ended["failed"]
        return state(RunStatus.FAILED, str(failure.get("sentence")), str(failure.get("hint") or logs))
    if "cancelled" in ended and (job is None or reasons.is_final(job.state)):
        return state(RunStatus.CANCELLED, _cancelled(ended["cancelled"]), f"to go on with it all the same: {resume}")
    if answer.problem:
        return state(RunStatus.UNKNOWN, f"{answer.problem}; last known: {_last_known(recent, now)}", "ask again later")
    if job_id is None:
        return state(RunStatus.INTERRUPTED, "it was prepared, but there is no job of it", resume)
    if job is None:
        sentence = f"job {job_id} is no longer known to the scheduler and the run is not finished"
        return state(RunStatus.INTERRUPTED, sentence, resume)
    if reasons.is_pending(job.state):
        return state(RunStatus.PENDING, *_pending(job, recent))
    if not reasons.is_final(job.state):
        if "cancelled" in ended:
            return state(RunStatus.RUNNING, "cancelled by you; saving before it ends")
        ending = job.state == "COMPLETING"
        return state(RunStatus.RUNNING, "its job is ending" if ending else _running(recent))
    if "chain_ended" in ended:
        sentence = f"the last of its {ended['chain_ended'].get('links')} links ended before it was finished"
        return state(RunStatus.INTERRUPTED, sentence, f"{resume}, with --links N for a chain again")
    explained = reasons.explain_state(job.state)
    if job.state == "CANCELLED":
        return state(RunStatus.CANCELLED, f"job {job_id} was cancelled", f"to go on with it: {resume}")
    if job.state == "COMPLETED":
        sentence = f"job {job_id} ended before the run was finished"
        last = next((event for event in reversed(recent) if event.get("event") == "ended"), None)
        if last is not None:
            sentence += f": {last.get('sentence')}"
        return state(RunStatus.INTERRUPTED, sentence, resume)
    sentence = f"job {job_id} ended as {job.state}: {explained.sentence}"
    return state(RunStatus.INTERRUPTED, sentence, f"{logs}; then {resume}")


def _heeded(events: Events) -> Events:
    """Return the events without the submissions of jobs that found another one working on the run."""
    kept: list[Mapping[str, Any]] = []
    for event in events:
        if event.get("event") == "refused":
            refused = event.get("job_id")
            taken_back = ("submitted", "continued", "linked")
            kept = [e for e in kept if e.get("job_id") != refused or e.get("event") not in taken_back]
        else:
            kept.append(event)
    return kept


def _since_submission(events: Events) -> Events:
    """Return the events from the user's last submission or resume on."""
    events = _heeded(events)
    starts = [
        index
        for index, event in enumerate(events)
        if event.get("event") == "submitted" and event.get("by") != "supervisor"
    ]
    return events[starts[-1] :] if starts else events


def _pending(job: JobRecord, recent: Events) -> tuple[str, str]:
    explanation = reasons.explain_reason(job.reason)
    sentence = f"{job.reason}: {explanation.sentence}" if job.reason not in ("", "None") else explanation.sentence
    last = recent[-1] if recent else {}
    continued = [event for event in recent if event.get("event") == "continued"]
    if continued and last.get("event") in ("continued", "ended"):
        sentence = f"saved and going on in job {job.job_id}; {sentence}"
    return sentence, explanation.remedy


def _cancelled(event: Mapping[str, Any]) -> str:
    return "cancelled with scancel" if event.get("by") == "scancel" else "cancelled by you"


def _running(recent: Events) -> str:
    words = {
        "submitted": "starting",
        "continued": "starting again",
        "started": "training",
        "warned": "warned; saving",
        "relaunched": "starting the ranks again",
        "ended": "between two attempts",
    }
    known = [event["event"] for event in recent if event.get("event") in words]
    return _saving_again(recent) or (words[known[-1]] if known else "starting")


def _saving_again(recent: Events) -> str:
    """Return that the last save is being tried again, and why; empty where it is not."""
    saves = [event for event in recent if event.get("event") in ("began", "saved", "save_failed", "ended")]
    last = saves[-1] if saves else {}
    if last.get("event") != "save_failed" or last.get("again_in_s") is None:
        return ""
    times = "once" if last.get("tries") == 1 else f"{last.get('tries')} times"
    return f"saving; the disk refused {times} ({last.get('problem')}), and is tried again before the run stops"


def _last_known(recent: Events, now: float | None) -> str:
    if not recent:
        return "nothing"
    heard_at = recent[-1].get("time")
    age = "" if now is None or heard_at is None else f", {duration(max(0.0, now - float(heard_at)))} ago"
    return f"{_running(recent)}{age}"
