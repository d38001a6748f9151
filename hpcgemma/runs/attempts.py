"""The attempts of a run as its events and metrics tell of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Events = Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Attempt:
    """One launch of the ranks, from getting the nodes to its end; times in seconds since 1970."""

    number: int
    job_id: str
    began: float
    relaunched: bool = False
    """Whether it had the allocation of the one before."""
    first_step_at: float | None = None
    first_step: int = 0
    """Steps taken before."""
    saves: list[tuple[int, float, float]] = field(default_factory=list)
    """Step, end and seconds of each, as far as the training stood still."""
    failed_saves: list[tuple[float, float]] = field(default_factory=list)
    """End and seconds of each that the disk refused."""
    last_step: int = 0
    last_sign: float = 0.0
    ended: float | None = None
    ending: str = ""

    def end(self, later: Sequence[Attempt], now: float | None) -> float:
        """Return when it ended, or was last heard of.

        Args:
            later: The attempts after it.
            now: The present, where the run still runs; None where its last sign of life counts.
        """
        if self.ended is not None:
            return self.ended
        if later:
            return min(self.last_sign, later[0].began)
        return self.last_sign if now is None else now

    def safe_step(self, *, goes_on: bool) -> int:
        """Return the step that the run can go on from, as far as the attempt itself knows: all, while it goes on."""
        if goes_on or self.ending == "finished":
            return self.last_step
        return self.saves[-1][0] if self.saves else self.first_step


def attempts_of(events: Events, metrics: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """Return the attempts that got as far as their nodes, the first one first.

    Args:
        events: The run's events, oldest first.
        metrics: Lines of its metrics, or nothing where only its saves and starts matter.
    """
    found: dict[int, Attempt] = {}
    current: Attempt | None = None
    relaunched = False
    for event in events:
        kind, at = event.get("event"), float(event.get("time", 0.0))
        if kind == "relaunched":
            relaunched = True
        elif kind == "began":
            number = int(event["attempt"])
            current = found[number] = Attempt(number, str(event.get("job_id")), at, relaunched, last_sign=at)
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
