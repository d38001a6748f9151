"""What of a recipe decides the weights, and what may change between two attempts of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from hpcgemma.changes import Change
from hpcgemma.recipes.types import Recipe

_WORDS = {"name", "description"}
_DATA_SECTIONS = {"data", "tokenizer"}
_FIXED_SECTIONS = {"model", "tokenizer", "lora"}
_FIXED_FIELDS = {"optimizer.name", "training.global_batch", "training.trained_weights"}
"""With the sections: what a checkpoint's tensors are, and what its position counts."""
_LOADABLE_FIELDS = {"model.attention", "lora.alpha", "lora.dropout"}
"""Of the sections, what any checkpoint can be loaded under."""

_FREE_SECTIONS = {"name", "description", "resources", "strategy", "tensorboard", "checkpoint", "monitors", "watch"}
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


def recipe_changes(before: Recipe, after: Recipe) -> list[Change]:
    """Return the fields in which two recipes differ, by their dotted paths; what rows become is of the kind data."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    deciding = set(_differences(_deciding(before), _deciding(after), ""))
    return [
        Change(
            kind="data" if field.split(".")[0] in _DATA_SECTIONS else "recipe",
            field=field,
            before=_shown(old, field),
            now=_shown(new, field),
            decides=field in deciding,
        )
        for field in sorted(_differences(old, new, ""))
        if field not in _WORDS
    ]


def needs_a_new_run(changes: Iterable[Change]) -> list[str]:
    """Return the changed fields under which a checkpoint cannot be loaded, or does not say where to go on."""
    return [
        each.field
        for each in changes
        if each.field in _FIXED_FIELDS
        or (each.field.split(".")[0] in _FIXED_SECTIONS and each.field not in _LOADABLE_FIELDS)
    ]


def free_fields() -> list[str]:
    """Return what may change between two attempts, by dotted paths; a section stands for all its fields."""
    fields = [f"{section}.{name}" for section, names in _FREE_FIELDS.items() for name in names]
    return sorted([*(_FREE_SECTIONS - _WORDS), *fields])


def _deciding(recipe: Recipe) -> dict[str, Any]:
    content = recipe.model_dump(mode="json", exclude=_FREE_SECTIONS)
    for section, names in _FREE_FIELDS.items():
        content[section] = {key: value for key, value in content[section].items() if key not in names}
    return content


def _shown(content: Any, path: str) -> str:
    """Return a field's value as YAML in one line, as after ``--set``."""
    for name in path.split("."):
        content = content.get(name) if isinstance(content, dict) else None
    return json.dumps(content, ensure_ascii=False) if not isinstance(content, str) else content


def _differences(before: Any, after: Any, path: str) -> list[str]:
    if not isinstance(before, dict) or not isinstance(after, dict):
        return [] if before == after else [path]
    found = []
    for key in before.keys() | after.keys():
        found += _differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    return found
