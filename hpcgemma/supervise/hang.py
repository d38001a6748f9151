"""Whether the ranks hang, from what their heartbeats say and when this process saw them change. Pure.

Ranks meet at every step, so one that hangs stops all of them within a step: while any heartbeat changes, none hangs.
That also makes a file system harmless that shows some ranks' heartbeats late, or not at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

STEPS_PER_LIMIT = 5
"""So many times the 99th percentile of a step's time may pass without a sign of life."""
_STEPS_TO_KNOW = 10
"""Steps before there is a percentile: first steps compile and fill caches, and count as another phase."""
_STEPS_KEPT = 1000
_LONGEST_GAP_S = 10.0
"""A watcher that did not look for longer was stopped itself, perhaps with the ranks: that time does not count."""

_LOOKS_PER_LIMIT = 20
_LONGEST_BETWEEN_LOOKS_S = 5.0

STARTING = "starting"


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank's heartbeat says."""

    content: str
    """The whole of it: another content is a sign of life. No host's clock is compared with another's."""
    phase: str = STARTING
    step: int = 0
    own_s: float | None = None
    """Seconds of the rank's own part of a step; None before the first one."""
    rows_s: float | None = None
    """Seconds among them in which rows were read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """No rank gives a sign of life any more."""

    phase: str
    step: int
    silent_s: float
    """For how long, by the watcher's clock."""
    behind: int | None
    """The one rank whose heartbeat is of an earlier step than all others'; None where there is no such rank."""


class HangWatch:
    """Looks at the heartbeats of one attempt.

    Args:
        before: What the heartbeats say before the ranks start, which the attempt before has left.
        training_s: Least seconds without a sign of life while ranks take steps; None: they may be silent for ever.
        elsewhere_s: Seconds in any other phase; None: for ever.
    """

    def __init__(self, before: Mapping[int, Beat], *, training_s: float | None, elsewhere_s: float | None) -> None:
        self._training_s, self._elsewhere_s = training_s, elsewhere_s
        self._beats = {rank: Beat(beat.content) for rank, beat in before.items()}
        self._looked_at: float | None = None
        self._clock = 0.0
        """Seconds in which this watcher looked."""
        self._changed_at = 0.0
        self._stepped: tuple[int, float] | None = None
        """The newest step of the first rank, and when it was first seen; None outside of training."""
        self._first_step: int | None = None
        """The step of the first heartbeat of the training."""
        self._steps_taken = 0
        """Steps since then, those between two other phases too, none of whose heartbeats may have been seen."""
        self._step_times: deque[float] = deque(maxlen=_STEPS_KEPT)
        """Of quick steps, of which not each is seen, the mean from one that is seen to the next."""

    def look(self, beats: Mapping[int, Beat], now: float) -> Hang | None:
        """Take in the heartbeats of now, and return whether the ranks hang.

        Args:
            beats: By rank; a rank whose heartbeat cannot be read is left out.
            now: Monotonic time, in seconds.
        """
        if self._looked_at is not None:
            self._clock += min(now - self._looked_at, _LONGEST_GAP_S)
        self._looked_at = now
        for rank in sorted(beats):
            known = self._beats.get(rank)
            if known is None or known.content != beats[rank].content:
                self._beats[rank] = beats[rank]
                self._changed_at = self._clock
                if rank == min(beats):
                    self._note_step(beats[rank])
        limit_s = self.limit_s()
        silent_s = self._clock - self._changed_at
        if limit_s is None or silent_s <= limit_s:
            return None
        return self._hang(silent_s)

    def limit_s(self) -> float | None:
        """Return how long the ranks may be silent now: the longest of what their phases allow; None: for ever."""
        limits = [self._limit_of(beat.phase) for beat in self._beats.values()] or [self._elsewhere_s]
        known = [limit for limit in limits if limit is not None]
        return max(known) if len(known) == len(limits) else None

    def forgive(self) -> None:
        """Begin anew: there is a reason why no sign of life can be seen."""
        self._changed_at = self._clock

    def _limit_of(self, phase: str) -> float | None:
        if phase != "training":
            return self._elsewhere_s
        if self._training_s is None:
            return None
        if self._steps_taken < _STEPS_TO_KNOW:
            return None if self._elsewhere_s is None else max(self._training_s, self._elsewhere_s)
        return max(STEPS_PER_LIMIT * percentile_99(self._step_times), self._training_s)

    def _note_step(self, beat: Beat) -> None:
        if beat.phase != "training":
            self._stepped = None
            return
        self._first_step = beat.step if self._first_step is None else self._first_step
        self._steps_taken = max(self._steps_taken, beat.step - self._first_step)
        if self._stepped is None:
            self._stepped = (beat.step, self._clock)
        elif beat.step > self._stepped[0]:
            step, seen_at = self._stepped
            self._step_times.append((self._clock - seen_at) / (beat.step - step))
            self._stepped = (beat.step, self._clock)

    def _hang(self, silent_s: float) -> Hang:
        steps = {rank: beat.step for rank, beat in self._beats.items()}
        first = min(steps, key=lambda rank: steps[rank], default=0)
        others = [step for rank, step in steps.items() if rank != first]
        return Hang(
            phase=self._beats[first].phase if steps else STARTING,
            step=steps.get(first, 0),
            silent_s=silent_s,
            behind=first if not others or steps[first] < min(others) else None,
        )


def between_looks_s(*limits_s: float | None) -> float:
    """Return the seconds between two looks at files: seldom enough to cost a file system nothing.

    Args:
        limits_s: How long silence is allowed; None: for ever.
    """
    known = [limit_s for limit_s in limits_s if limit_s is not None]
    return min([_LONGEST_BETWEEN_LOOKS_S, *(limit_s / _LOOKS_PER_LIMIT for limit_s in known)])


def percentile_99(times: deque[float]) -> float:
    """Return the time that 99 of 100 do not exceed; 0 of none, as of steps too quick to be seen."""
    ordered = sorted(times)
    return 0.0 if not ordered else ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
