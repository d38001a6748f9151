"""Which acts a drill has, and when its run is ready for one."""

from __future__ import annotations

from typing import Any

import pytest

from hpcgemma.cli.drill import drill
from hpcgemma.drill.acts import NAMES, Act, acts_of, is_ready, training_attempt
from hpcgemma.errors import InputError


def event(kind: str, **facts: Any) -> dict[str, Any]:
    return {"event": kind, **facts}


def test_a_cluster_and_this_machine_have_acts_of_their_own() -> None:
    assert acts_of("slurm") == (Act.WARNED, Act.RANKS_KILLED, Act.REQUEUED, Act.TIME_LIMIT, Act.JOB_KILLED)
    assert acts_of("none") == (Act.WARNED, Act.RANKS_KILLED, Act.STOPPED, Act.JOB_KILLED)


@pytest.mark.parametrize(
    ("scheduler", "wanted", "acts"),
    [
        ("slurm", ("killed", "warned"), (Act.WARNED, Act.RANKS_KILLED, Act.JOB_KILLED)),
        ("slurm", ("terminated",), (Act.REQUEUED, Act.TIME_LIMIT)),
        ("none", ("terminated",), (Act.STOPPED,)),
        ("none", ("job-killed", "job-killed"), (Act.JOB_KILLED,)),
    ],
)
def test_chosen_acts_keep_their_order(scheduler: Any, wanted: tuple[str, ...], acts: tuple[Act, ...]) -> None:
    assert acts_of(scheduler, wanted) == acts


def test_an_act_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(InputError) as caught:
        acts_of("none", ("warned", "time-limit"))
    assert caught.value.problem == "there is no act time-limit in a drill on this machine"
    assert caught.value.hint == "--act with one of: warned, ranks-killed, stopped, job-killed, terminated, killed"


def test_the_command_line_knows_every_act() -> None:
    option = next(each for each in drill.params if each.name == "wanted")
    assert tuple(option.type.choices) == NAMES  # type: ignore[attr-defined]


FIRST = [event("began", attempt=1), event("training", attempt=1, step=0)]
SECOND = [event("ended", attempt=1), event("began", attempt=2), event("training", attempt=2, step=100)]


@pytest.mark.parametrize(
    ("events", "reached", "ready"),
    [
        pytest.param([], {}, False, id="nothing yet"),
        pytest.param(FIRST, {1: 50}, False, id="no checkpoint yet"),
        pytest.param([*FIRST, event("saved", step=100)], {1: 119}, False, id="little to lose"),
        pytest.param([*FIRST, event("saved", step=100)], {1: 120}, True, id="something to lose"),
        pytest.param([*FIRST, event("saved", step=100)], {1: 200}, False, id="in a save"),
        pytest.param([*FIRST, event("saved", step=100), event("warned")], {1: 150}, False, id="warned"),
        pytest.param([*FIRST, event("saved", step=100), *SECOND], {1: 150, 2: 150}, False, id="still made again"),
        pytest.param([*FIRST, event("saved", step=100), *SECOND], {1: 150, 2: 151}, True, id="made again"),
    ],
)
def test_an_act_comes_when_there_is_something_to_lose_and_nothing_to_make_again(
    events: list[dict[str, Any]], reached: dict[int, int], ready: bool
) -> None:
    assert is_ready(events, reached, 100) is ready


def test_no_attempt_trains_between_two() -> None:
    assert training_attempt([*FIRST, event("ended", attempt=1)]) is None
    assert training_attempt([*FIRST, *SECOND]) == 2
