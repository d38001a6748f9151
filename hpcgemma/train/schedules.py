"""The learning rate as a pure function of the step, so that no schedule needs saving.

The shapes are those of transformers' ``get_scheduler`` (wsd falls in a straight line to 0 there too, with
``decay_type="linear"``); a test compares them. Like there, the first of the warm-up steps has rate 0.
"""

from __future__ import annotations

import math

from hpcgemma.recipes.types import ScheduleSpec


def warmup_steps(schedule: ScheduleSpec, total_steps: int) -> int:
    """Return the warm-up in steps: a share of all steps below 1, steps from 1 on."""
    if schedule.warmup < 1:
        return math.ceil(schedule.warmup * total_steps)
    return int(schedule.warmup)


def decay_steps(schedule: ScheduleSpec, total_steps: int) -> int:
    """Return the fall of wsd in steps: a share of all steps up to 1, steps above; never into the warm-up."""
    wanted = math.ceil(schedule.decay * total_steps) if schedule.decay <= 1 else int(schedule.decay)
    return min(wanted, total_steps - warmup_steps(schedule, total_steps))


def rate_share(schedule: ScheduleSpec, step: int, total_steps: int) -> float:
    """Return the learning rate of a step as a share of the peak.

    Args:
        schedule: Shape, warm-up, cycles and fall.
        step: Steps taken before this one.
        total_steps: Steps of the whole training.
    """
    warmup = warmup_steps(schedule, total_steps)
    if step < warmup:
        return step / max(1, warmup)
    if schedule.name == "constant":
        return 1.0
    if schedule.name == "linear":
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup))
    if schedule.name == "wsd":
        return min(1.0, max(0.0, (total_steps - step) / max(1, decay_steps(schedule, total_steps))))
    progress = (step - warmup) / max(1, total_steps - warmup)
    if schedule.name == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    if progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((schedule.num_cycles * progress) % 1.0))))
