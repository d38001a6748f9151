"""The learning rate is a pure function of the step, and that of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from hpcgemma.recipes.types import ScheduleSpec
from hpcgemma.train.schedules import rate_share, warmup_steps

NAMES = {"constant": "constant_with_warmup"}


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "cosine_with_restarts"])
def test_the_shapes_are_those_of_transformers(name: Any) -> None:
    schedule = ScheduleSpec(name=name, warmup=0.1, num_cycles=3 if name == "cosine_with_restarts" else 1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    options = {"num_cycles": 3} if name == "cosine_with_restarts" else {}
    theirs = get_scheduler(
        NAMES.get(name, name), optimizer, num_warmup_steps=5, num_training_steps=50, scheduler_specific_kwargs=options
    )
    for step in range(50):
        assert rate_share(schedule, step, 50) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_warmup_below_one_is_a_share_and_from_one_on_steps() -> None:
    assert warmup_steps(ScheduleSpec(warmup=0.05), 320) == 16
    assert warmup_steps(ScheduleSpec(warmup=3.0), 320) == 3
    assert warmup_steps(ScheduleSpec(), 320) == 0
