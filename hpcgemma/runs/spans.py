"""A run's time cut into pieces, each with what it was used for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hpcgemma.runs.attempts import Attempt, Events, attempts_of


class Use(StrEnum):
    """What a piece of a run's time was used for."""

    QUEUED = "queued"
    """Without nodes, waiting for them."""
    STOPPED = "stopped"
    """Ended, until a person resumed it."""
    RESTARTING = "restarting"
    """From getting the nodes, or from an attempt's last save, to the next first step; the first start too."""
    TRAINING = "training"
    """Steps, evaluations and saves that count in the result."""
    LOST = "lost"
    """Steps that were computed again, and the time until their loss was noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A piece of a run's time."""

    use: Use
    start: float
    """Seconds since 1970."""
    end: float
    attempt: int
    """The attempt that it belongs to, or that it led to; 0 before the first."""
    saving_s: float = 0.0
    """Of its seconds, those in which the training stood still for checkpoints."""
    lost_steps: int = 0
    """Steps of it that were computed again."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


def spans(
    events: Events, metrics: Iterable[Mapping[str, Any]], now: float | None = None, *, waits: bool = False
) -> list[Span]:
    """Return the pieces of a run's time in their order.

    Args:
        events: Its events, oldest first.
        metrics: Lines of its metrics.
        now: Seconds since 1970, where it still waits or runs; None where it does not, and its last sign of life counts.
        waits: Whether it waits for nodes now.
    """
    attempts = attempts_of(events, metrics)
    submitted = [event for event in events if event.get("event") == "submitted"]
    found: list[Span] = []
    end: float | None = None
    for index, attempt in enumerate(attempts):
        later = attempts[index + 1 :]
        found += _before(attempt, end, submitted)
        end = attempt.end(later, None if waits else now)
        goes_on = now is not None and not waits and not later and attempt.ended is None
        found += _within(attempt, later, end, goes_on=goes_on)
    if now is not None and submitted and (waits or not attempts):
        since = max(float(submitted[-1]["time"]), end or 0.0)
        found.append(Span(use=Use.QUEUED, start=since, end=now, attempt=len(attempts)))
    return [span for span in found if span.end > span.start or span.lost_steps]


def _before(attempt: Attempt, end: float | None, submitted: Sequence[Mapping[str, Any]]) -> Iterator[Span]:
    """Yield the time between two attempts, or before the first.

    Args:
        attempt: The one that came.
        end: End of the one before; None where there was none.
        submitted: The run's submissions.
    """
    asked = [float(event["time"]) for event in submitted if str(event.get("job_id")) == attempt.job_id]
    if end is None:
        if asked:
            yield Span(use=Use.QUEUED, start=asked[0], end=attempt.began, attempt=attempt.number)
        return
    if attempt.relaunched:
        yield Span(use=Use.RESTARTING, start=end, end=attempt.began, attempt=attempt.number)
        return
    resumed = max((time for time in asked if time > end), default=end)
    yield Span(use=Use.STOPPED, start=end, end=min(resumed, attempt.began), attempt=attempt.number)
    yield Span(use=Use.QUEUED, start=max(resumed, end), end=attempt.began, attempt=attempt.number)


def _within(attempt: Attempt, later: Sequence[Attempt], end: float, *, goes_on: bool) -> Iterator[Span]:
    """Yield the time of an attempt; what comes after the step from which a later one started is lost."""
    first = attempt.first_step_at
    if first is None:
        yield Span(use=Use.RESTARTING, start=attempt.began, end=end, attempt=attempt.number)
        return
    yield Span(use=Use.RESTARTING, start=attempt.began, end=first, attempt=attempt.number)
    resumed = [each.first_step for each in later if each.first_step_at is not None]
    kept_step = min([attempt.safe_step(goes_on=goes_on), *resumed])
    kept_until, after, lost_steps = end, Use.LOST, 0
    if kept_step < attempt.last_step:
        ends = [at for step, at, _ in attempt.saves if step <= kept_step]
        kept_until = min(ends[-1] if ends else first, end)
        lost_steps = attempt.last_step - max(kept_step, attempt.first_step)
    elif attempt.ended is not None and attempt.ending != "finished" and attempt.saves:
        kept_until = min(attempt.saves[-1][1], end)
        after = Use.RESTARTING  # it was saved before it ended: nothing of it was lost
    pauses = [(at, seconds) for _, at, seconds in attempt.saves] + attempt.failed_saves
    saving = sum(seconds for at, seconds in pauses if at <= kept_until)
    yield Span(use=Use.TRAINING, start=first, end=kept_until, attempt=attempt.number, saving_s=saving)
    yield Span(use=after, start=kept_until, end=end, attempt=attempt.number, lost_steps=lost_steps)
