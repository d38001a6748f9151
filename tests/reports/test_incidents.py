from __future__ import annotations

from typing import Any

import pytest

from hpcgemma.reports.incidents import incidents_of
from tests.reports.eventful import EVENTS, HOSTILE, READINGS


def test_incidents_come_in_their_order_and_endings_are_told_elsewhere() -> None:
    told = incidents_of(EVENTS, READINGS)
    assert [incident.kind for incident in told] == ["slow rank", "monitor", "save failed"]
    assert told[0].sentence == f"attempt 1: {HOSTILE}"
    assert told[2].sentence == f"step 220: {HOSTILE}"


@pytest.mark.parametrize(
    ("event", "kind", "sentence"),
    [
        (
            {"event": "sick_node", "attempt": 2, "node": "node3", "sentence": "a GPU is lost", "is_left": True},
            "sick node",
            "attempt 2, node3: a GPU is lost; it was left",
        ),
        (
            {"event": "set_aside", "checkpoint": "step-00000100", "problem": "model.safetensors is cut short"},
            "checkpoint",
            "step-00000100 was set aside: model.safetensors is cut short",
        ),
        (
            {"event": "changed", "settings": ["resources.nodes=4"], "walltime": "02:00:00", "allowed": ["data"]},
            "changed",
            "resumed with resources.nodes=4, time limit 02:00:00, allowed: data",
        ),
        ({"event": "cancelled", "job_id": "7", "by": "scancel"}, "cancelled", "with scancel"),
        (
            {"event": "refused", "job_id": "9", "sentence": "another job works on this run"},
            "second job",
            "job 9: another job works on this run",
        ),
        (
            {"event": "drilled", "act": "requeued", "attempt": 3, "command": "", "refused": "not here"},
            "drill",
            "attempt 3: requeued, on purpose; refused: not here",
        ),
    ],
)
def test_each_kind_is_a_sentence(event: dict[str, Any], kind: str, sentence: str) -> None:
    [incident] = incidents_of([{"time": 5.0, **event}], [])
    assert (incident.time, incident.kind, incident.sentence) == (5.0, kind, sentence)
