"""The learning rate is a pure function of the step, and that of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from hpcgemma.recipes.types import ScheduleSpec
from hpcgemma.train.schedules import decay_steps, rate_share, warmup_steps

TOTAL, WARMUP = 50, 5
# Ours -> their name and options.
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "constant": ("constant_with_warmup", {}),
    "linear": ("linear", {}),
    "cosine": ("cosine", {}),
    "cosine_with_restarts": ("cosine_with_restarts", {"num_cycles": 3}),
    "wsd": ("warmup_stable_decay", {"num_decay_steps": 15, "decay_type": "linear"}),
}


@pytest.mark.parametrize("name", THEIRS)
def test_the_shapes_are_those_of_transformers(name: Any) -> None:
    schedule = ScheduleSpec(name=name, warmup=WARMUP / TOTAL, num_cycles=3, decay=0.3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    their_name, options = THEIRS[name]
    theirs = get_scheduler(
        their_name, optimizer, num_warmup_steps=WARMUP, num_training_steps=TOTAL, scheduler_specific_kwargs=options
    )
    for step in range(TOTAL):
        assert rate_share(schedule, step, TOTAL) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_wsd_rises_stays_and_falls() -> None:
    schedule = ScheduleSpec(name="wsd", warmup=2.0, decay=4.0)
    shares = [rate_share(schedule, step, 10) for step in range(11)]
    assert shares == [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_fall_up_to_one_is_a_share_and_above_steps_and_never_reaches_into_the_warmup() -> None:
    assert decay_steps(ScheduleSpec(name="wsd", decay=0.1), 320) == 32
    assert decay_steps(ScheduleSpec(name="wsd", decay=1.0, warmup=20.0), 320) == 300
    assert decay_steps(ScheduleSpec(name="wsd", decay=50.0), 320) == 50
    assert decay_steps(ScheduleSpec(name="wsd", decay=500.0, warmup=20.0), 320) == 300


def test_a_warmup_below_one_is_a_share_and_from_one_on_steps() -> None:
    assert warmup_steps(ScheduleSpec(warmup=0.05), 320) == 16
    assert warmup_steps(ScheduleSpec(warmup=3.0), 320) == 3
    assert warmup_steps(ScheduleSpec(), 320) == 0
