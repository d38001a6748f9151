"""Where a run's time went: productive, saving, restarting, lost, and waiting in the queue. Pure.

ETTR, the effective training time ratio, is the productive share of the time in which the run had its nodes (Kokolis et
al. 2025, Revisiting Reliability in Large-Scale Machine Learning Research Clusters). What a run computes twice is
productive once; waiting in the queue is shown beside it and not part of it.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Events = Sequence[Mapping[str, Any]]

_SAVED_ENDINGS = ("finished", "stopped")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeUse:
    """The seconds of a run, by what they were used for."""

    productive_s: float = 0.0
    """Steps and evaluations that count in the result."""
    saving_s: float = 0.0
    """Checkpoints, while the training stood still."""
    restarting_s: float = 0.0
    """From getting the nodes, or from an attempt's last save, to the next first step; the first start too."""
    lost_s: float = 0.0
    """Steps that were computed again, and the time until their loss was noticed."""
    queued_s: float = 0.0
    """Without nodes, waiting for them."""
    stopped_s: float = 0.0
    """Ended, until a person resumed it."""
    lost_steps: int = 0
    """Steps that were computed again."""

    @property
    def allocated_s(self) -> float:
        """Seconds in which the run had its nodes."""
        return self.productive_s + self.saving_s + self.restarting_s + self.lost_s

    @property
    def ettr(self) -> float | None:
        """The productive share of the time with nodes; None before there was any."""
        return self.productive_s / self.allocated_s if self.allocated_s > 0 else None

    def as_mapping(self) -> dict[str, Any]:
        """Return it as plain values, seconds to the millisecond."""
        seconds = {name: round(value, 3) for name, value in asdict(self).items()}
        return {"ettr": None if self.ettr is None else round(self.ettr, 4), **seconds}


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What interruptions cost a run, as measured."""

    save_s: float
    """Median of its saves."""
    interval_s: float
    """Median time between two saves of one attempt."""
    restart_s: float
    """Median time from getting the nodes to the first step."""


def predicted_ettr(
    *, save_s: float, interval_s: float, restart_s: float, mtti_s: float, lost_s: float | None = None
) -> float:
    """Return the ETTR to be expected: 1 / (1 + C/W + (lost + R)/M).

    Args:
        save_s: Seconds of a save, C.
        interval_s: Seconds between two saves, W.
        restart_s: Seconds from an interruption to the next first step, R.
        mtti_s: Mean time to interruption in seconds, M.
        lost_s: Seconds computed again after each; None: half an interval, as where nothing announces it.
    """
    lost = interval_s / 2 if lost_s is None else lost_s
    return 1 / (1 + save_s / interval_s + (lost + restart_s) / mtti_s)


def hours_to_loss(events: Events, *, assumed_h: float) -> float:
    """Return the mean hours with nodes to an interruption that loses work, as far as the run has seen.

    What was assumed counts like one such interruption that was seen, so that a run without any keeps nearly that, and
    one of many follows what it sees.

    Args:
        events: The run's events.
        assumed_h: What to assume before any were seen.
    """
    attempts = _attempts(events, ())
    ended = attempts[:-1]
    lost = sum(each.first_step_at is not None and each.ending not in _SAVED_ENDINGS for each in ended)
    seconds = sum(_end_of(each, attempts[index + 1 :], None) - each.began for index, each in enumerate(attempts))
    return (assumed_h + seconds / 3600) / (1 + lost)


@dataclass(slots=True)
class _Attempt:
    """One launch of the ranks, from getting the nodes to its end."""

    number: int
    job_id: str
    began: float
    relaunched: bool = False
    """Whether it had the allocation of the one before."""
    first_step_at: float | None = None
    first_step: int = 0
    """Steps taken before."""
    saves: list[tuple[int, float, float]] = field(default_factory=list)
    """Step, end and seconds of each."""
    failed_saves: list[tuple[float, float]] = field(default_factory=list)
    """End and seconds of each that the disk refused."""
    last_step: int = 0
    last_sign: float = 0.0
    ended: float | None = None
    ending: str = ""


def time_use(
    events: Events, metrics: Iterable[Mapping[str, Any]], now: float | None = None, *, waits: bool = False
) -> TimeUse:
    """Return where a run's time went.

    Args:
        events: Its events, oldest first.
        metrics: Lines of its metrics.
        now: Seconds since 1970, where it still waits or runs; None where it does not, and its last sign of life counts.
        waits: Whether it waits for nodes now.
    """
    attempts = _attempts(events, metrics)
    submitted = [event for event in events if event.get("event") == "submitted"]
    total: dict[str, float] = dict.fromkeys(TimeUse.__dataclass_fields__, 0.0)
    end: float | None = None
    for index, attempt in enumerate(attempts):
        later = attempts[index + 1 :]
        _add_gap(total, end, attempt, submitted)
        end = _end_of(attempt, later, None if waits else now)
        goes_on = now is not None and not waits and not later and attempt.ended is None
        _add_attempt(total, attempt, later, end, goes_on=goes_on)
    if now is not None and submitted and (waits or not attempts):
        total["queued_s"] += max(0.0, now - max(float(submitted[-1]["time"]), end or 0.0))
    steps = int(total.pop("lost_steps"))
    return TimeUse(lost_steps=steps, **total)


def costs(events: Events) -> Costs | None:
    """Return what interruptions cost a run as far as it was measured; None before two saves of one attempt."""
    attempts = _attempts(events, ())
    saves = [seconds for attempt in attempts for _, _, seconds in attempt.saves]
    ends = [[at for _, at, _ in attempt.saves] for attempt in attempts]
    intervals = [after - before for each in ends for before, after in itertools.pairwise(each)]
    restarts = [attempt.first_step_at - attempt.began for attempt in attempts if attempt.first_step_at is not None]
    if not intervals or not restarts:
        return None
    return Costs(
        save_s=statistics.median(saves),
        interval_s=max(statistics.median(intervals), 1e-3),
        restart_s=statistics.median(restarts),
    )


def _attempts(events: Events, metrics: Iterable[Mapping[str, Any]]) -> list[_Attempt]:
    """Return the attempts that got as far as their nodes."""
    found: dict[int, _Attempt] = {}
    current: _Attempt | None = None
    relaunched = False
    for event in events:
        kind, at = event.get("event"), float(event.get("time", 0.0))
        if kind == "relaunched":
            relaunched = True
        elif kind == "began":
            number = int(event["attempt"])
            current = found[number] = _Attempt(number, str(event.get("job_id")), at, relaunched, last_sign=at)
            relaunched = False
        if current is None:
            continue
        if kind == "training":
            current.first_step_at, current.first_step = at, int(event["step"])
            current.last_step = max(current.last_step, current.first_step)
        elif kind == "saved":
            current.saves.append((int(event["step"]), at, float(event.get("stall_s", event.get("seconds", 0.0)))))
            current.last_step = max(current.last_step, int(event["step"]))
        elif kind == "save_failed":
            current.failed_saves.append((at, float(event.get("seconds", 0.0))))
        elif kind == "ended" and event.get("attempt") == current.number:
            current.ended, current.ending = at, str(event.get("ending"))
        if kind in ("started", "resumed", "training", "saved", "save_failed", "warned"):
            current.last_sign = max(current.last_sign, at)
    for line in metrics:
        attempt = found.get(int(line.get("attempt", 0)))
        if attempt is not None:
            attempt.last_step = max(attempt.last_step, int(line.get("step", 0)))
            attempt.last_sign = max(attempt.last_sign, float(line.get("time", 0.0)))
    return list(found.values())


def _end_of(attempt: _Attempt, later: Sequence[_Attempt], now: float | None) -> float:
    if attempt.ended is not None:
        return attempt.ended
    if later:
        return min(attempt.last_sign, later[0].began)
    return attempt.last_sign if now is None else now


def _safe_step(attempt: _Attempt, *, goes_on: bool) -> int:
    """Return the step that the run can go on from, as far as the attempt itself knows: all, while it goes on."""
    if goes_on or attempt.ending == "finished":
        return attempt.last_step
    return attempt.saves[-1][0] if attempt.saves else attempt.first_step


def _add_gap(
    total: dict[str, float], end: float | None, attempt: _Attempt, submitted: Sequence[Mapping[str, Any]]
) -> None:
    """Add the time between two attempts, or before the first."""
    asked = [float(event["time"]) for event in submitted if str(event.get("job_id")) == attempt.job_id]
    if end is None:
        total["queued_s"] += max(0.0, attempt.began - asked[0]) if asked else 0.0
        return
    if attempt.relaunched:
        total["restarting_s"] += max(0.0, attempt.began - end)
        return
    resumed = max((time for time in asked if time > end), default=end)
    total["stopped_s"] += max(0.0, min(resumed, attempt.began) - end)
    total["queued_s"] += max(0.0, attempt.began - max(resumed, end))


def _add_attempt(
    total: dict[str, float], attempt: _Attempt, later: Sequence[_Attempt], end: float, *, goes_on: bool
) -> None:
    """Add the time of an attempt; what comes after the step from which a later one started is lost."""
    first = attempt.first_step_at
    if first is None:
        total["restarting_s"] += max(0.0, end - attempt.began)
        return
    total["restarting_s"] += first - attempt.began
    kept_step = min(
        [_safe_step(attempt, goes_on=goes_on), *(each.first_step for each in later if each.first_step_at is not None)]
    )
    kept_until = end
    if kept_step < attempt.last_step:
        ends = [at for step, at, _ in attempt.saves if step <= kept_step]
        kept_until = min(ends[-1] if ends else first, end)
        total["lost_s"] += end - kept_until
        total["lost_steps"] += attempt.last_step - max(kept_step, attempt.first_step)
    elif attempt.ended is not None and attempt.ending != "finished" and attempt.saves:
        kept_until = min(attempt.saves[-1][1], end)  # it was saved before it ended: nothing of it was lost
        total["restarting_s"] += end - kept_until
    pauses = [(at, seconds) for _, at, seconds in attempt.saves] + attempt.failed_saves
    saving = sum(seconds for at, seconds in pauses if at <= kept_until)
    total["saving_s"] += saving
    total["productive_s"] += max(0.0, kept_until - first - saving)
