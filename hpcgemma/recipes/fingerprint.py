"""What of a recipe decides the weights, and what may change between two attempts of a run."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hpcgemma.recipes.types import Recipe

_FREE_SECTIONS = {"name", "description", "resources", "strategy", "tensorboard", "checkpoint", "monitors"}
_FREE_FIELDS = {
    "training": {
        "micro_batch",
        "eval_micro_batch",
        "activation_checkpointing",
        "compile",
        "empty_cache_every_steps",
        "gpu_memory_fraction",
        "liger_kernels",
        "loss_chunk_tokens",
        "log_every_steps",
    },
    "data": {"num_workers", "pin_memory"},
    "evaluation": {"generation", "targets", "clip_model"},
}


def recipe_fingerprint(recipe: Recipe) -> str:
    """Return a hash of what decides the weights; a resume under another one is refused.

    The number of ranks, the micro-batch and the strategy are not in it: a step's rows and its loss do not depend on
    them.
    """
    canonical = json.dumps(_deciding(recipe), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def deciding_changes(before: Recipe, after: Recipe) -> list[str]:
    """Return the fields, by their dotted paths, in which two recipes differ and that decide the weights."""
    return sorted(_differences(_deciding(before), _deciding(after), ""))


def free_fields() -> list[str]:
    """Return what may change between two attempts, by dotted paths; a section stands for all its fields."""
    fields = [f"{section}.{name}" for section, names in _FREE_FIELDS.items() for name in names]
    return sorted([*(_FREE_SECTIONS - {"name", "description"}), *fields])


def _deciding(recipe: Recipe) -> dict[str, Any]:
    content = recipe.model_dump(mode="json", exclude=_FREE_SECTIONS)
    for section, names in _FREE_FIELDS.items():
        content[section] = {key: value for key, value in content[section].items() if key not in names}
    return content


def _differences(before: Any, after: Any, path: str) -> list[str]:
    if not isinstance(before, dict) or not isinstance(after, dict):
        return [] if before == after else [path]
    found = []
    for key in before.keys() | after.keys():
        found += _differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    return found
