from __future__ import annotations

from typing import Any

import pytest

from hpcgemma.runs.restart import PARTS, median_restart, restarts

OWN = {"imports": 4.0, "meeting": 0.5, "model": 1.0, "checkpoint": 0.25, "rehearsal": 0.25}


def start(attempt: int, at: float, *, age_s: float) -> list[dict[str, Any]]:
    """Return the events of a start: 2 s of preparation, 1 s of launch, and 6 s of the rank's own."""
    return [
        {"event": "began", "attempt": attempt, "time": at, "age_s": age_s},
        {"event": "started", "attempt": attempt, "time": at + 2},
        {"event": "resumed", "attempt": attempt, "time": at + 8.5},
        {"event": "training", "attempt": attempt, "time": at + 9, "parts": OWN},
    ]


def test_a_start_is_what_the_supervisor_and_rank_0_say_of_it() -> None:
    [found] = restarts(start(1, 100.0, age_s=3.0))
    assert tuple(found) == PARTS
    assert found == {"job": 3.0, "preparation": 2.0, "launch": 1.0, **OWN}


def test_a_start_in_the_same_allocation_has_no_start_of_the_job() -> None:
    events = [*start(1, 100.0, age_s=3.0), {"event": "relaunched", "time": 150.0}, *start(2, 151.0, age_s=54.0)]
    assert [each["job"] for each in restarts(events)] == [3.0, 0.0]
    assert median_restart(events)["job"] == pytest.approx(1.5)


def test_a_start_that_did_not_come_to_its_first_step_is_none() -> None:
    assert restarts(start(1, 100.0, age_s=3.0)[:-1]) == []
    assert median_restart([]) == {}
