"""Which node is to blame for an attempt's end, and what follows."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from hpcgemma.supervise.blame import Blame, blame, left_nodes, proven
from hpcgemma.supervise.endings import Ending, EndingKind, NextMove, classify, next_move, sick_ending
from hpcgemma.supervise.health import NodeFault
from hpcgemma.supervise.launchers import RankExit

Event = dict[str, Any]


def ended(kind: str, node: str | None) -> Event:
    return {"event": "ended", "ending": kind, "node": node}


def ending(kind: EndingKind, **more: Any) -> Ending:
    return Ending(kind=kind, sentence="why", rank=1, **more)


def on_node2(kind: EndingKind, *before: Event, **more: Any) -> Blame | None:
    events = [*before, ended(kind.value, "node2")]
    return blame(ending(kind, **more), "node2", events)


def test_every_node_that_fails_its_check_is_struck_and_left() -> None:
    faults = (NodeFault("node2", "gpu", "it is gone"), NodeFault("node4", "silent", "it hangs"))
    last = sick_ending(faults)
    assert last.sentence == "node node2 is sick: it is gone; node node4 is sick: it hangs"
    assert blame(last, None, []) == Blame(faults=faults)


@pytest.mark.parametrize(
    ("kind", "more", "is_left"),
    [
        (EndingKind.SICK_NODE, {}, True),
        (EndingKind.GPU_FAULT, {}, False),
        (EndingKind.RANK_DIED, {"signal": int(signal.SIGBUS)}, False),
    ],
)
def test_what_a_machine_alone_does_is_a_strike_and_the_node_is_looked_at_again_unless_it_failed_a_check(
    kind: EndingKind, more: dict[str, Any], is_left: bool
) -> None:
    fault = NodeFault("node2", kind.value, "why")
    assert on_node2(kind, **more) == Blame(faults=(fault,), is_struck=True, is_left=is_left)


@pytest.mark.parametrize(
    "kind",
    ["data", "input", "cuda_oom", "host_oom", "non_finite_loss", "disk", "error", "communication", "node_failed"],
)
def test_what_the_user_decides_or_slurm_does_is_no_nodes_fault_however_often(kind: str) -> None:
    assert on_node2(EndingKind(kind), ended(kind, "node2"), ended(kind, "node2")) is None


@pytest.mark.parametrize("kind", ["rank_died", "hung", "unknown", "file_system"])
def test_a_node_that_ends_two_attempts_in_a_row_is_left(kind: str) -> None:
    assert on_node2(EndingKind(kind)) is None
    fault = NodeFault("node2", kind, "2 attempts in a row failed there first, the last so: why")
    assert on_node2(EndingKind(kind), ended("unknown", "node2")) == Blame(faults=(fault,), is_struck=False)
    assert on_node2(EndingKind(kind), ended("unknown", "node1")) is None
    assert on_node2(EndingKind(kind), ended("unknown", "node2"), {"event": "saved", "step": 20}) is None
    assert on_node2(EndingKind(kind), ended("cuda_oom", "node2")) is None


def test_a_gpu_fault_that_repeats_is_a_strike_and_the_node_is_left() -> None:
    struck = on_node2(EndingKind.GPU_FAULT, ended("gpu_fault", "node2"))
    assert struck is not None
    assert (struck.is_struck, struck.is_left) == (True, True)


def test_what_repeats_is_held_against_a_node_when_the_run_has_gone_further_without_it() -> None:
    left = {"event": "sick_node", "node": "node2", "attempt": 2, "is_left": True, "is_struck": False}
    elsewhere = left | {"node": "node4", "attempt": 4}
    saved, on = {"event": "saved", "step": 20}, {"event": "continued", "without": ["node2", "node4"]}
    assert proven([saved, left]) == []
    assert proven([left, on, saved, saved]) == [left]
    assert proven([left, on, elsewhere, on, saved]) == [elsewhere], "the failure went with the run"
    assert proven([left, {"event": "continued"}, saved]) == [], "it was given the node again"
    assert proven([left | {"is_struck": True}, on, saved]) == []


def test_where_the_rank_is_not_known_nobody_is_blamed() -> None:
    assert blame(ending(EndingKind.GPU_FAULT), None, []) is None


def test_a_rank_that_a_bus_error_killed_is_known_by_its_signal() -> None:
    assert classify([RankExit(1, None, signal.SIGBUS)], None, warned=False).signal == signal.SIGBUS
    assert classify([RankExit(1, 135, None)], None, warned=False).signal == signal.SIGBUS


def test_a_node_is_left_until_the_user_resumes() -> None:
    sick = {"event": "sick_node", "node": "node2", "is_left": True}
    kept = {"event": "sick_node", "node": "node3", "is_left": False}
    assert left_nodes([{"event": "submitted", "by": "launcher"}, sick, kept, sick]) == ["node2"]
    assert left_nodes([sick, {"event": "submitted", "by": "launcher"}]) == []


def test_a_run_that_leaves_a_node_goes_on_elsewhere_as_long_as_it_may() -> None:
    last = ending(EndingKind.SICK_NODE)
    assert next_move(last, without_progress=1, max_relaunches=3, cancelled=False, leaves_node=True) is NextMove.CONTINUE
    assert next_move(last, without_progress=1, max_relaunches=3, cancelled=False) is NextMove.RELAUNCH
    assert next_move(last, without_progress=4, max_relaunches=3, cancelled=False, leaves_node=True) is NextMove.GIVE_UP
    stays = next_move(last, without_progress=1, max_relaunches=3, cancelled=True, leaves_node=True)
    assert stays is NextMove.STAY_CANCELLED
