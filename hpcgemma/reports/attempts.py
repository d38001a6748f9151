"""A run's attempts, a row each: how it ended, what was lost, and how the run went on. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcgemma.runs.attempts import Attempt, Events, attempts_of
from hpcgemma.runs.spans import Span
from hpcgemma.runs.ways import Way, way_between


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """One launch of the ranks, and what followed."""

    number: int
    job_id: str
    nodes: str
    """As Slurm lists them; empty where the ranks were never started."""
    ranks: int | None
    began: float
    """When it had its nodes, in seconds since 1970."""
    ended: float | None
    """None while it runs, or where nobody was left to say so."""
    first_step: int | None
    """Steps made before it; None where it made none."""
    last_step: int | None
    signal: str
    """By which it was warned; empty where it was not."""
    ending: str
    """Its kind; empty while it runs, and where nobody was left to say so."""
    sentence: str
    hint: str
    lost_steps: int
    """Steps that were made again."""
    back_after_s: float | None
    """From its end, or its last sign of life, to the next first step; None where there was none."""
    way: Way | None
    """How the run went on; None where it did not."""


def attempt_rows(events: Events, metrics: Sequence[Mapping[str, Any]], pieces: Sequence[Span]) -> list[AttemptRow]:
    """Return the attempts of a run that had their nodes, the first one first.

    Args:
        events: Its events, oldest first.
        metrics: Lines of its metrics.
        pieces: Its time, cut into pieces.
    """
    attempts = attempts_of(events, metrics)
    starts = {event.get("attempt"): event for event in events if event.get("event") == "started"}
    endings = {event.get("attempt"): event for event in events if event.get("event") == "ended"}
    rows = []
    for attempt, after in itertools.zip_longest(attempts, attempts[1:]):
        started, ended = starts.get(attempt.number, {}), endings.get(attempt.number, {})
        lost = sum(span.lost_steps for span in pieces if span.attempt == attempt.number)
        rows.append(
            AttemptRow(
                number=attempt.number,
                job_id=attempt.job_id,
                nodes=str(started.get("node_list") or ""),
                ranks=started.get("ranks"),
                began=attempt.began,
                ended=attempt.ended,
                first_step=None if attempt.first_step_at is None else attempt.first_step,
                last_step=None if attempt.first_step_at is None else attempt.last_step,
                signal=_signal(events, attempt, after),
                ending=attempt.ending,
                sentence=str(ended.get("sentence") or ""),
                hint=str(ended.get("hint") or ""),
                lost_steps=lost,
                back_after_s=_back_after(attempt, attempts),
                way=None if after is None else _way(events, attempt, after),
            )
        )
    return rows


def _during(events: Events, attempt: Attempt, after: Attempt | None) -> Events:
    """Return the events from where an attempt had its nodes until the next one has."""
    end = float("inf") if after is None else after.began
    return [event for event in events if attempt.began <= float(event.get("time", 0.0)) < end]


def _signal(events: Events, attempt: Attempt, after: Attempt | None) -> str:
    warned = (event for event in _during(events, attempt, after) if event.get("event") == "warned")
    return next((str(event.get("signal")) for event in warned), "")


def _way(events: Events, attempt: Attempt, after: Attempt) -> Way:
    return way_between(_during(events, attempt, after), attempt.job_id, after.job_id)


def _back_after(attempt: Attempt, attempts: Sequence[Attempt]) -> float | None:
    later = [each for each in attempts if each.number > attempt.number]
    steps_at = next((each.first_step_at for each in later if each.first_step_at is not None), None)
    return None if steps_at is None else max(0.0, steps_at - attempt.end(later, None))
