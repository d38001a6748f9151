"""A run's metrics as curves over its steps. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_POINTS = 2000
"""Points of a curve that are kept; a screen has no more columns."""

_NO_CURVES = frozenset(
    ("step", "total_steps", "samples", "epoch", "tokens", "target_tokens", "time", "attempt", "monitors/seconds")
)
_STEP_CHARTS: tuple[tuple[str, dict[str, str]], ...] = (
    ("Loss per learned token", {"loss": "training", "eval_loss": "held out"}),
    ("Learning rate", {"learning_rate": "learning rate"}),
    ("Gradient norm before clipping", {"grad_norm": "gradient norm"}),
    ("Tokens per second, over all ranks", {"tokens_per_s": "tokens/s"}),
    ("Most GPU memory so far, GiB", {"peak_memory_gib": "rank 0"}),
)
_ANSWERS = "Scores of generated answers"
_MONITORS = "monitors/"

_LEAST_ANSWERS = 2

Curve = dict[int, float]
"""Value of each step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Curves that share their axes."""

    title: str
    names: tuple[str, ...]
    """Of the curves."""
    steps: tuple[int, ...]
    """All at which any curve has a point."""
    values: tuple[tuple[float | None, ...], ...]
    """Of each curve, one for each step; None where it has none there."""


def charts_of(metrics: Iterable[Mapping[str, Any]], most_points: int = MOST_POINTS) -> tuple[Chart, ...]:
    """Return what there is to draw of a run.

    Args:
        metrics: Lines of its metrics. Of two lines with a step the later one counts: the step was made again.
        most_points: Points that are kept of a curve. What is left out lies between the lowest and the highest point of
            its stretch, which are kept, so that no spike is lost.
    """
    curves = _curves_of(metrics)
    charts = [
        _chart(title, {label: curves.pop(name, {}) for name, label in names.items()}, most_points)
        for title, names in _STEP_CHARTS
    ]
    watched = {name: curves.pop(name) for name in sorted(curves) if name.startswith(_MONITORS)}
    answers = _chart(_ANSWERS, dict(sorted(curves.items())), most_points)
    if len(answers.steps) > _LEAST_ANSWERS:  # of fewer, a table says more
        charts.append(answers)
    for name, curve in watched.items():
        word = name.removeprefix(_MONITORS).replace("_", " ")
        charts.append(_chart(word[:1].upper() + word[1:], {word: curve}, most_points))
    return tuple(chart for chart in charts if len(chart.steps) > 1)


def _curves_of(metrics: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for line in metrics:
        step = line.get("step")
        if not isinstance(step, int):
            continue
        for name, value in line.items():
            if name not in _NO_CURVES and isinstance(value, int | float) and not isinstance(value, bool):
                curves.setdefault(name, {})[step] = float(value)
    return curves


def _chart(title: str, curves: Mapping[str, Curve], most_points: int) -> Chart:
    drawn = {name: thinned(curve, most_points) for name, curve in curves.items() if curve}
    steps = sorted({step for curve in drawn.values() for step in curve})
    values = tuple(tuple(_finite(curve.get(step)) for step in steps) for curve in drawn.values())
    return Chart(title=title, names=tuple(drawn), steps=tuple(steps), values=values)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def thinned(curve: Curve, most_points: int) -> Curve:
    """Return a curve of at most so many points, in the order of its steps, its first and last one among them.

    Args:
        curve: The curve.
        most_points: At least 4.
    """
    steps = sorted(curve)
    if len(steps) <= most_points:
        return {step: curve[step] for step in steps}
    inner = steps[1:-1]
    stretches = (most_points - 2) // 2
    kept = {steps[0], steps[-1]}
    for number in range(stretches):
        stretch = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        kept |= _extremes(curve, stretch)
    return {step: curve[step] for step in sorted(kept)}


def _extremes(curve: Curve, steps: Sequence[int]) -> set[int]:
    """Return the steps of the lowest and the highest value; a value that is no number is neither, unless all are."""
    known = [step for step in steps if math.isfinite(curve[step])] or list(steps)
    return {min(known, key=lambda step: curve[step]), max(known, key=lambda step: curve[step])}
