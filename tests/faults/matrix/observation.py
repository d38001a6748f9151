"""What became of a run that a fault befell, and what it cost, read from the run's own events. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]

_NOTICES = ("warned", "ended", "save_failed", "set_aside", "straggler", "refused", "cancelled", "failed")
"""Events by which a fault has become known."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was seen of one scenario; where a fault struck several times, the longest of each time."""

    happened: str
    """A sentence."""
    lost_steps: int | None = None
    """Completed steps that were computed again; None where no run was to go on."""
    noticed_s: float | None = None
    """From the fault to the first event that tells of it."""
    saved_s: float | None = None
    """From the fault to the checkpoint that was saved for it; None where none was."""
    training_s: float | None = None
    """From the fault to the first step of the next attempt, the scheduler's wait included."""
    equal: bool | None = None
    """Whether losses and final weights are bitwise those of the run that nothing interrupted; None: not compared."""


def figures(events: Sequence[Event], steps: Iterable[int], faults: Sequence[float]) -> dict[str, Any]:
    """Return the figures of an observation.

    Args:
        events: The run's events.
        steps: The logged steps, in their order; one that was computed again is there twice.
        faults: When each fault struck, in seconds since 1970.
    """
    logged = list(steps)

    def longest(seconds_of: Callable[[float], float | None]) -> float | None:
        found = [seconds for fault in faults if (seconds := seconds_of(fault)) is not None]
        return max(found, default=None)

    return {
        "lost_steps": len(logged) - len(set(logged)),
        "noticed_s": longest(lambda fault: _first_after(events, fault, _NOTICES)),
        "saved_s": longest(lambda fault: _saved_after(events, fault)),
        "training_s": longest(lambda fault: _first_after(events, fault, ("training",))),
    }


def _first_after(events: Sequence[Event], moment: float, kinds: Sequence[str]) -> float | None:
    later = (each for each in events if each["time"] >= moment and each.get("ending") != "finished")
    return next((each["time"] - moment for each in later if each["event"] in kinds), None)


def _saved_after(events: Sequence[Event], fault: float) -> float | None:
    """Return the seconds to the last save of the attempt that a fault struck, if it ended by that."""
    later = [each for each in events if each["time"] >= fault]
    end = next((index for index, each in enumerate(later) if each["event"] in ("ended", "began")), len(later))
    if "finished" in (each.get("ending") for each in later[: end + 1]):
        return None
    saved = [each["time"] - fault for each in later[:end] if each["event"] == "saved"]
    return saved[-1] if saved else None
