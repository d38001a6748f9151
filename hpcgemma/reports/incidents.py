"""What happened to a run besides the ends of its attempts, a sentence each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One thing that happened."""

    time: float
    """Seconds since 1970."""
    kind: str
    sentence: str


def incidents_of(events: Iterable[Mapping[str, Any]], readings: Iterable[Mapping[str, Any]]) -> list[Incident]:
    """Return what happened, oldest first.

    Args:
        events: The run's events.
        readings: Lines of monitors.jsonl; those without a sign of trouble say nothing.
    """
    found = [
        Incident(time=float(event.get("time", 0.0)), kind=kind, sentence=sentence)
        for event in events
        for kind, sentence in _told(event)
    ]
    for reading in readings:
        for sign in reading.get("signs") or ():
            found.append(
                Incident(
                    time=float(reading.get("time", 0.0)), kind="monitor", sentence=f"step {reading.get('step')}: {sign}"
                )
            )
    return sorted(found, key=lambda incident: incident.time)


def _told(event: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield the kind and the sentence of an event; nothing of one that is told elsewhere or is no incident."""
    attempt = event.get("attempt")
    match event.get("event"):
        case "save_failed":
            yield "save failed", f"step {event.get('step')}: {event.get('problem')}"
        case "set_aside":
            yield "checkpoint", f"{event.get('checkpoint')} was set aside: {event.get('problem')}"
        case "straggler":
            yield "slow rank", f"attempt {attempt}: {event.get('sentence')}"
        case "sick_node":
            left = "; it was left" if event.get("is_left") else ""
            yield "sick node", f"attempt {attempt}, {event.get('node')}: {event.get('sentence')}{left}"
        case "refused":
            yield "second job", f"job {event.get('job_id')}: {event.get('sentence')}"
        case "changed":
            settings = [*event.get("settings", ())]
            if event.get("walltime"):
                settings.append(f"time limit {event['walltime']}")
            settings += [f"allowed: {kind}" for kind in event.get("allowed", ())]
            yield "changed", "resumed with " + ", ".join(settings)
        case "drilled":
            refused = f"; refused: {event.get('refused')}" if event.get("refused") else ""
            yield "drill", f"attempt {attempt}: {event.get('act')}, on purpose{refused}"
        case "cancelled":
            yield "cancelled", "with scancel" if event.get("by") == "scancel" else "by hpcgemma cancel"
        case _:
            return
