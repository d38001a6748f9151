"""How long before its end a job must be warned, from what saves and steps took so far. Pure.

Warned too early a job gives some of its time back; warned too late it loses all since its last checkpoint.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcgemma.findings import Finding

MARGIN_S = 60
"""Seconds beside the save: Slurm looks at time limits every 30 s, and the next job must be submitted. That Slurm may
warn 60 s early (sbatch --signal) needs none: it only gives more time."""
RESERVE_S = 15
"""Seconds of these that no short time limit takes: the supervisor ends ranks that have not saved by then, to go on
(supervise/attempt.py)."""
MAX_LEAD_S = 65535
"""sbatch takes no more."""
_STEPS_LOOKED_AT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveNeed:
    """What a run needs to be warned in time, as measured."""

    slowest_save_s: float
    step_s: float
    """The slowest of the last steps: a warning waits until its step is done."""

    @property
    def seconds(self) -> int:
        """Whole seconds from the warning to the end of the save."""
        return math.ceil(self.slowest_save_s + self.step_s)


def save_need(events: Iterable[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> SaveNeed | None:
    """Return what a run needs to save after a warning; None before its first save.

    Args:
        events: The run's events.
        metrics: Lines of its metrics, or the last of them.
    """
    saves = [float(event["seconds"]) for event in events if event.get("event") == "saved" and "seconds" in event]
    if not saves:
        return None
    return SaveNeed(slowest_save_s=max(saves), step_s=_slowest_step_s(metrics))


def _slowest_step_s(metrics: Sequence[Mapping[str, Any]]) -> float:
    steps = [line for line in metrics if "loss" in line][-_STEPS_LOOKED_AT:]
    return max(
        (
            (after["time"] - before["time"]) / (after["step"] - before["step"])
            for before, after in itertools.pairwise(steps)
            if after.get("attempt") == before.get("attempt") and after["step"] > before["step"]
        ),
        default=0.0,
    )


def lead_of(events: Iterable[Mapping[str, Any]], job_id: str, assumed_s: int) -> int:
    """Return how many seconds before its time limit a job is warned, as it was recorded when it was submitted."""
    leads = [event.get("lead_s") for event in events if str(event.get("job_id")) == job_id]
    known = [int(lead_s) for lead_s in leads if lead_s is not None]
    return known[-1] if known else assumed_s


def warning_lead_s(need: SaveNeed | None, *, assumed_s: int, walltime_min: int) -> int:
    """Return how many seconds before the time limit Slurm is to warn.

    Where the time limit is short the margin gives way to the training, down to what the supervisor needs: with the save
    it takes a quarter of the limit, and in no case more than half.

    Args:
        need: What was measured; None where nothing was.
        assumed_s: The profile's lead, for that case.
        walltime_min: Time limit of the job.
    """
    if need is None:
        return assumed_s
    limit_s = walltime_min * 60
    wanted = min(need.seconds + MARGIN_S, max(need.seconds + RESERVE_S, limit_s // 4))
    return max(1, min(wanted, limit_s // 2, MAX_LEAD_S))


def time_to_save_s(lead_s: int) -> float:
    """Return how many seconds after a warning the ranks may still save, before the supervisor ends them to go on.

    Args:
        lead_s: Seconds from the warning to the time limit.
    """
    return max(float(lead_s - RESERVE_S), lead_s / 2)


def grace_caution(need: SaveNeed | None, notice_s: int | None, *, whose: str, where: str) -> Finding | None:
    """Return a caution where a preempted run cannot save in time; None where it can, or nothing was measured.

    Args:
        need: What was measured.
        notice_s: Seconds from the notice of a preemption to the end; None where that is not known.
        whose: Whose saves were measured.
        where: The place, its kind first, as ``partition 'spot'``.
    """
    if need is None or notice_s is None or need.seconds <= notice_s:
        return None
    return Finding(
        f"{where} gives a preempted job {notice_s} s, and {whose} needs {need.seconds} s to save (its slowest save "
        f"took {need.slowest_save_s:.1f} s, a step up to {need.step_s:.1f} s): preempted, it loses all since its last "
        "checkpoint",
        "save more often (--set checkpoint.every_steps=auto, or fewer steps), or choose a "
        f"{where.partition(' ')[0]} with more grace",
    )
