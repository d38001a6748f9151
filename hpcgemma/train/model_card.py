"""The model card of an exported model: what it is, what it was trained on, how well it does. Pure.

The card travels further than the run: it names files, never folders of this machine or its users.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from hpcgemma.recipes.metrics import METRICS
from hpcgemma.recipes.types import Recipe

_PATHS = {"path", "train", "eval", "clip_model", "layer_class"}

_GEMMA_NOTE = (
    "The base model is a Gemma. Gemma 1 to 3 are provided under and subject to the Gemma Terms of Use, found at "
    "ai.google.dev/gemma/terms; who passes this model on must pass these terms on with it, say that it was modified, "
    "and keep to the Gemma Prohibited Use Policy. A later Gemma may come under another licence: the base model's own "
    "card says which."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a card says."""

    name: str
    recipe: Recipe
    model_type: str
    """As in the model's config."""
    has_whole_model: bool
    """Whether the folder holds all weights, or adapters alone."""
    checkpoint: str
    data: Mapping[str, Any]
    """Summary of the prepared data."""
    scores: Mapping[str, Any]
    """What evaluation.json holds of the finished model."""
    losses: Mapping[str, float]
    """Last losses of the training, by name."""
    versions: Mapping[str, str]
    """Of the packages, by name."""


def model_card(facts: CardFacts) -> str:
    """Return the text of README.md."""
    recipe = facts.recipe
    base = _plain(recipe.model.path) if recipe.model.path else None
    has_terms = base is not None and facts.model_type.startswith("gemma")
    kind = "Adapters, for peft; the base model is loaded beside them."
    if facts.has_whole_model:
        kind = "The whole model" + (", adapters merged into the base." if recipe.lora else ".")
    lines = ["---"]
    if base is not None and "/" in base:
        lines += [f"base_model: {base}"]
    # Gemma 4 has another licence than those before it.
    is_under_terms = has_terms and not facts.model_type.startswith("gemma4")
    lines += [f"library_name: {'transformers' if facts.has_whole_model else 'peft'}"]
    lines += [*(["license: gemma"] if is_under_terms else []), "---", ""]
    lines += [f"# {facts.name}", "", recipe.description, "", kind, ""]
    lines += _table(
        [
            ("base model", base or f"none: a {facts.model_type} from random weights"),
            ("base revision", recipe.model.revision or ""),
            ("weights", facts.checkpoint),
            ("seed", str(recipe.training.seed)),
            *((f"seed of {name}", str(seed)) for name, seed in _other_seeds(recipe)),
        ]
    )
    lines += ["## Data", "", *_table(_data_facts(facts.data)), "## Results", ""]
    lines += _table([*_results(facts.scores), *((name, f"{loss:.4f}") for name, loss in facts.losses.items())])
    lines += [f"- {name}: {METRICS[name]}" for name in METRICS if name in facts.scores] + [""]
    lines += ["## Recipe", "", "```yaml", yaml.safe_dump(_recipe(recipe), sort_keys=False, allow_unicode=True).rstrip()]
    lines += ["```", "", "## Made with", "", *_table(list(facts.versions.items()))]
    if has_terms:
        lines += ["## Licence", "", _GEMMA_NOTE, ""]
    return "\n".join(lines)


def _data_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    files = [PurePath(str(path)).name for path in summary.get("data_files", [])]
    facts = [("files", ", ".join(dict.fromkeys(files)) or "drawn by hpcgemma")]
    for part, name in (("train", "training"), ("eval", "held-out")):
        counts = summary.get(part)
        if isinstance(counts, Mapping):
            facts.append(
                (name, ", ".join(f"{value:,} {key}" for key, value in counts.items() if isinstance(value, int)))
            )
    return [*facts, ("fingerprint", str(summary.get("fingerprint", "")))]


def _results(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [(name, f"{scores[name]:.4g}") for name in METRICS if isinstance(scores.get(name), (int, float))]
    for name, verdict in scores.get("targets", {}).items():
        limits = {key: verdict[key] for key in ("at_least", "at_most") if key in verdict}
        met = {True: "met", False: "missed", None: "not measured"}[verdict["met"]]
        found.append((f"target {name}", f"{json.dumps(limits)}: {met}"))
    return found


def _other_seeds(recipe: Recipe) -> list[tuple[str, int]]:
    return [] if recipe.data.generator is None else [("the drawings", recipe.data.generator.seed)]


def _recipe(recipe: Recipe) -> dict[str, Any]:
    """Return what of a recipe differs from its defaults, without folders."""
    content = recipe.model_dump(mode="json", exclude_defaults=True, exclude={"resources"})
    plain: dict[str, Any] = _without_folders(content)
    return plain


def _without_folders(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _without_folders(each, str(key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each, name) for each in value]
    return _plain(value) if isinstance(value, str) and name in _PATHS else value


def _plain(path: str) -> str:
    """Return a hub name as it is, and of a path its last part."""
    is_hub_name = (
        path.count("/") == 1 and not path.startswith((".", "/", "~")) and "." not in path.rpartition("/")[2][-6:]
    )
    return path if is_hub_name else PurePath(path).name


def _table(pairs: Sequence[tuple[str, str]]) -> list[str]:
    shown = [(name, value) for name, value in pairs if value]
    if not shown:
        return ["Not measured.", ""]
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in shown), ""]


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")
