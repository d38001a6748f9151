"""Whether a rank is slower than the others, from what their heartbeats say of their own parts of a step. Pure.

A step takes equally long on all ranks, since they wait for each other in it. So each says how long it takes to read its
rows, and how long up to the exchange of gradients. DDP makes ranks wait for each other once in between: slow rows show
in the first figure only, slow computing in the second only.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

_SLOW_SHARE = 1.5
"""Times the others' median."""
_SLOW_S = 0.02
"""And at least so much more: below it is noise."""
_LASTS_S = 60.0
"""For so long without a break."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A rank that the others wait for at every step."""

    rank: int
    part: str
    """What of a step is slow, in words."""
    own_s: float
    others_s: float
    """Median of the others."""

    @property
    def sentence(self) -> str:
        """What is to be said of it."""
        return (
            f"rank {self.rank} is slow: {self.part} takes {self.own_s:.2f} s; the others take {self.others_s:.2f} s "
            "and wait for it"
        )


class StragglerWatch:
    """Looks at the ranks of one attempt; each is reported once.

    Args:
        part: What of a step is looked at, in words.
        lasts_s: Seconds for which a rank must be slower.
    """

    def __init__(self, part: str, lasts_s: float = _LASTS_S) -> None:
        self._part, self._lasts_s = part, lasts_s
        self._slow_since: dict[int, float] = {}
        self._reported: set[int] = set()

    def look(self, own_s: Mapping[int, float], now: float) -> list[Straggler]:
        """Take in how long that takes each rank, and return the ranks that are found to be slow now.

        Args:
            own_s: Seconds, by rank.
            now: Monotonic time, in seconds.
        """
        found = []
        for rank, own in own_s.items():
            others = [seconds for other, seconds in own_s.items() if other != rank]
            others_s = statistics.median(others) if others else own
            if own < max(_SLOW_SHARE * others_s, others_s + _SLOW_S):
                self._slow_since.pop(rank, None)
                continue
            since = self._slow_since.setdefault(rank, now)
            if now - since >= self._lasts_s and rank not in self._reported:
                self._reported.add(rank)
                found.append(Straggler(rank=rank, part=self._part, own_s=own, others_s=others_s))
        return found
