"""How far a run's training is: step, loss, speed and time left, read from the end of its metrics."""

from __future__ import annotations

import itertools
import json
import statistics
from dataclasses import dataclass
from typing import Any

from hpcgemma.runs.folder import RunFolder

_TAIL_BYTES = 65536
_STEPS_FOR_SPEED = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The newest figures of a run."""

    step: int
    total_steps: int
    loss: float | None = None
    eval_loss: float | None = None
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    """At the median speed of the last steps; None until two steps of one attempt are logged."""
    phase: str = ""
    """What the ranks are doing besides stepping, such as loading or evaluating."""
    heartbeat: float | None = None
    """When rank 0 last gave a sign of life, in seconds since 1970."""


def read_progress(folder: RunFolder) -> Progress | None:
    """Return the newest figures, or None before the first sign of life."""
    lines = recent_metrics(folder)
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    beat = _heartbeat(folder)
    if not steps and not beat:
        return None
    newest = steps[-1] if steps else {}
    return Progress(
        step=int(newest.get("step", beat.get("step", 0) or 0)),
        total_steps=int(newest.get("total_steps", beat.get("total_steps", 0) or 0)),
        loss=newest.get("loss"),
        eval_loss=evaluations[-1]["eval_loss"] if evaluations else None,
        tokens_per_s=newest.get("tokens_per_s"),
        seconds_left=_seconds_left(steps),
        phase=str(beat.get("phase", "")),
        heartbeat=beat.get("time"),
    )


def _seconds_left(steps: list[dict[str, Any]]) -> float | None:
    if not steps:
        return None
    newest = steps[-1]
    recent = [line for line in steps[-_STEPS_FOR_SPEED:] if line.get("attempt") == newest.get("attempt")]
    speeds = [
        (after["time"] - before["time"]) / (after["step"] - before["step"])
        for before, after in itertools.pairwise(recent)
        if after["step"] > before["step"]
    ]
    if not speeds:
        return None
    return float(statistics.median(speeds) * max(0, newest["total_steps"] - newest["step"]))


def recent_metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """Return the last lines of a run's metrics; none before the first."""
    try:
        with folder.metrics_file.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            raw = file.read().split(b"\n")
    except OSError:
        return []
    found = []
    for line in raw:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the first line may be cut, the last one half written
        if isinstance(record, dict):
            found.append(record)
    return found


def _heartbeat(folder: RunFolder) -> dict[str, Any]:
    try:
        beat = json.loads(folder.heartbeat_file(0).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return beat if isinstance(beat, dict) else {}


def read_evaluation(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Return what generated answers scored, by `untrained`, `step-N` and `trained`; empty before."""
    try:
        scores = json.loads(folder.evaluation_file.read_text(encoding="utf-8"))
        return {str(when): dict(score) for when, score in scores.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def read_scores(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Return the same without the examples."""
    scores = read_evaluation(folder)
    return {when: {k: v for k, v in score.items() if k != "examples"} for when, score in scores.items()}
