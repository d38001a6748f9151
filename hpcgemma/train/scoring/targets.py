"""What a recipe wants its model to reach, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcgemma.recipes.types import TargetSpec


def judge(targets: Mapping[str, TargetSpec], scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return for each target its limits, the value, and whether it is met; null where it was not measured.

    Args:
        targets: By metric.
        scores: What was measured.
    """
    found = {}
    for name, target in targets.items():
        value = scores.get(name)
        limits = {
            key: limit
            for key, limit in (("at_least", target.at_least), ("at_most", target.at_most))
            if limit is not None
        }
        is_met = None
        if value is not None:
            is_met = limits.get("at_least", value) <= value <= limits.get("at_most", value)
        found[name] = limits | {"value": value, "met": is_met}
    return found


def sentence_of(name: str, verdict: Mapping[str, Any]) -> str:
    """Return a verdict as a person reads it: ``bleu4 21.4, at least 20: met``."""
    limits = " and ".join(
        f"{words} {verdict[key]:g}"
        for key, words in (("at_least", "at least"), ("at_most", "at most"))
        if key in verdict
    )
    if verdict["met"] is None:
        return f"{name}, {limits}: not measured"
    return f"{name} {verdict['value']:g}, {limits}: {'met' if verdict['met'] else 'missed'}"
