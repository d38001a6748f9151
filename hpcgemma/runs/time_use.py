"""Where a run's time went: productive, saving, restarting, lost, and waiting in the queue. Pure.

ETTR, the effective training time ratio, is the productive share of the time in which the run had its nodes (Kokolis et
al. 2025, Revisiting Reliability in Large-Scale Machine Learning Research Clusters). What a run computes twice is
productive once; waiting in the queue is shown beside it and not part of it.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hpcgemma.runs.attempts import Events, attempts_of
from hpcgemma.runs.spans import Span, Use, spans

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


def time_use(
    events: Events, metrics: Iterable[Mapping[str, Any]], now: float | None = None, *, waits: bool = False
) -> TimeUse:
    """Return where a run's time went; the arguments are those of `spans`."""
    return time_use_of(spans(events, metrics, now, waits=waits))


def time_use_of(pieces: Sequence[Span]) -> TimeUse:
    """Return the sums of a run's pieces of time."""

    def seconds(use: Use) -> float:
        return sum(span.seconds for span in pieces if span.use is use)

    training = [span for span in pieces if span.use is Use.TRAINING]
    return TimeUse(
        productive_s=sum(max(0.0, span.seconds - span.saving_s) for span in training),
        saving_s=sum(span.saving_s for span in training),
        restarting_s=seconds(Use.RESTARTING),
        lost_s=seconds(Use.LOST),
        queued_s=seconds(Use.QUEUED),
        stopped_s=seconds(Use.STOPPED),
        lost_steps=sum(span.lost_steps for span in pieces),
    )


def hours_to_loss(events: Events, *, assumed_h: float) -> float:
    """Return the mean hours with nodes to an interruption that loses work, as far as the run has seen.

    What was assumed counts like one such interruption that was seen, so that a run without any keeps nearly that, and
    one of many follows what it sees.

    Args:
        events: The run's events.
        assumed_h: What to assume before any were seen.
    """
    attempts = attempts_of(events, ())
    ended = attempts[:-1]
    lost = sum(each.first_step_at is not None and each.ending not in _SAVED_ENDINGS for each in ended)
    seconds = sum(each.end(attempts[index + 1 :], None) - each.began for index, each in enumerate(attempts))
    return (assumed_h + seconds / 3600) / (1 + lost)


def costs(events: Events) -> Costs | None:
    """Return what interruptions cost a run as far as it was measured; None before two saves of one attempt."""
    attempts = attempts_of(events, ())
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
