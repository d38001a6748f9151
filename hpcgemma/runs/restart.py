"""What a start of a run is made of, from the nodes to the first step. Pure.

The supervisor says when it has its nodes and when it starts the ranks, rank 0 how long each part of its own start took.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

PARTS = ("job", "preparation", "launch", "imports", "meeting", "model", "checkpoint", "rehearsal")
"""In their order: the supervisor's own start; the data; srun until a rank lives; torch and transformers; the ranks find
each other; the model is built and spread; the checkpoint is verified and read; the first step's rehearsal."""


def restarts(events: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return the seconds of each part, by part, of every start that came to its first step.

    Args:
        events: The run's events. Those of runs before these were measured yield nothing.
    """
    found = []
    began: Mapping[str, Any] = {}
    started: Mapping[str, Any] = {}
    job_s = 0.0
    relaunched = False
    for event in events:
        match event.get("event"):
            case "relaunched":
                relaunched = True
            case "began":
                began = event
                job_s, relaunched = 0.0 if relaunched else float(event.get("age_s", 0.0)), False
            case "started":
                started = event
            case "training" if "parts" in event and began and started:
                own = {str(part): float(seconds) for part, seconds in event["parts"].items()}
                first = {
                    "job": job_s,
                    "preparation": started["time"] - began["time"],
                    "launch": max(0.0, event["time"] - started["time"] - sum(own.values())),
                }
                found.append(first | own)
    return found


def median_restart(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the median seconds of each part; empty before any start was measured."""
    known = restarts(events)
    return {part: statistics.median(each.get(part, 0.0) for each in known) for part in PARTS} if known else {}
