"""What a drill does to its run: the acts, which of them a machine has, and when the run is ready for one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from hpcgemma.errors import InputError

_SAVED_STEPS_SHARE = 5
"""An act comes when a fifth of the steps between two checkpoints was made since the last one: work that can be lost."""


class Act(StrEnum):
    """One thing that happens to jobs, done on purpose."""

    WARNED = "warned"
    """The warning signal is sent to the supervisor by hand."""
    RANKS_KILLED = "ranks-killed"
    """All ranks get SIGKILL at once."""
    REQUEUED = "requeued"
    """The job is put back into the queue, which ends it as preemption does: SIGTERM, KillWait, SIGKILL."""
    TIME_LIMIT = "time-limit"
    """The job's time limit is lowered, until Slurm warns it."""
    STOPPED = "stopped"
    """Without a scheduler: SIGTERM, as a machine sends it that goes down."""
    JOB_KILLED = "job-killed"
    """Ranks and supervisor get SIGKILL: nobody is left who could go on."""

    @property
    def intent(self) -> str:
        """What is done, in words."""
        return _INTENTS[self]

    @property
    def is_announced(self) -> bool:
        """Whether the run hears of it in time to save, and so may lose nothing."""
        return self not in (Act.RANKS_KILLED, Act.JOB_KILLED)

    @property
    def may_need_resume(self) -> bool:
        """Whether it is as it should be that the run then stands still until somebody resumes it."""
        return self in (Act.STOPPED, Act.JOB_KILLED)


_INTENTS = {
    Act.WARNED: "the warning signal by hand",
    Act.RANKS_KILLED: "SIGKILL to all ranks",
    Act.REQUEUED: "put back into the queue, as by preemption",
    Act.TIME_LIMIT: "the time limit comes near",
    Act.STOPPED: "SIGTERM, as a machine sends it that goes down",
    Act.JOB_KILLED: "SIGKILL to ranks and supervisor",
}

GROUPS: Mapping[str, tuple[Act, ...]] = {
    "terminated": (Act.REQUEUED, Act.TIME_LIMIT, Act.STOPPED),
    "killed": (Act.RANKS_KILLED, Act.JOB_KILLED),
}
"""Words for several acts."""
NAMES: tuple[str, ...] = (*(act.value for act in Act), *GROUPS)
"""What an act is called on the command line."""
# The lowered limit of a job that is requeued may stay: so what starts a new job comes last.
_ON_SLURM = (Act.WARNED, Act.RANKS_KILLED, Act.REQUEUED, Act.TIME_LIMIT, Act.JOB_KILLED)
_HERE = (Act.WARNED, Act.RANKS_KILLED, Act.STOPPED, Act.JOB_KILLED)


def acts_of(scheduler: Literal["slurm", "none"], wanted: Sequence[str] = ()) -> tuple[Act, ...]:
    """Return the acts of a drill, in the order in which they are done.

    Args:
        scheduler: Of the profile.
        wanted: Names of acts or groups; none: all that the scheduler has.

    Raises:
        InputError: An act was named that this scheduler does not have.
    """
    there = _ON_SLURM if scheduler == "slurm" else _HERE
    if not wanted:
        return there
    foreign = [name for name in wanted if not set(GROUPS.get(name) or (Act(name),)) & set(there)]
    if foreign:
        where = "on a cluster" if scheduler == "slurm" else "on this machine"
        raise InputError(
            f"there is no act {', '.join(foreign)} in a drill {where}",
            f"--act with one of: {', '.join([*there, *GROUPS])}",
        )
    chosen = {act for name in wanted for act in (GROUPS.get(name) or (Act(name),))}
    return tuple(act for act in there if act in chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """One act as it was done."""

    act: Act
    at: float
    """Seconds since 1970."""
    attempt: int
    """The attempt that it met."""
    job_id: str
    command: str = ""
    """What was called."""
    refused: str = ""
    """Why it could not be done; empty where it was."""
    limit_at: float | None = None
    """When the lowered time limit ends the job, in seconds since 1970."""
    stood_still: str = ""
    """What the scheduler said of the run when nobody went on with it, until it was resumed; empty where one did."""
    note: str = ""
    """What else is to be known of it."""


def is_ready(events: Sequence[Mapping[str, Any]], reached: Mapping[int, int], interval: int) -> bool:
    """Return whether a run can meet its next act: it trains, has a checkpoint, and made some steps after it.

    What it had to make again must be done, so that it can be compared. At a step that is due to be saved it cannot: an
    act that comes during the save would take nothing away.

    Args:
        events: The run's events.
        reached: The last step of each attempt.
        interval: Steps between two checkpoints.
    """
    attempt = training_attempt(events)
    if attempt is None:
        return False
    step = reached.get(attempt, 0)
    before = max((last for number, last in reached.items() if number != attempt), default=0)
    saved = max((int(event["step"]) for event in events if event.get("event") == "saved"), default=0)
    is_saving = step % interval == 0
    return step > before and not is_saving and 0 < saved <= step - max(1, interval // _SAVED_STEPS_SHARE)


def training_attempt(events: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the attempt that takes steps now; None where none does, or it was warned."""
    attempt: int | None = None
    for event in events:
        if event.get("event") == "training":
            attempt = int(event["attempt"])
        elif event.get("event") in ("warned", "ended", "began", "submitted", "continued"):
            attempt = None
    return attempt
