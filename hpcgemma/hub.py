"""Models on this machine's disks: folders, and the Hugging Face cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpcgemma.recipes.types import Recipe

_VOCABULARY_MULTIPLE = 8
"""To which the trainer pads the vocabulary of a random start."""


def hub_cache() -> Path:
    """Return the Hugging Face cache, as huggingface_hub finds it (HF_HUB_CACHE, HF_HOME)."""
    chosen = os.environ.get("HF_HUB_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(home).expanduser() / "hub"


def is_cached(name: str, file: str = "config.json") -> bool:
    """Return whether a repository of the hub is in the cache, with a file of this name or pattern."""
    return any(_snapshots(name).glob(f"*/{file}"))


def model_config(recipe: Recipe) -> dict[str, Any]:
    """Return what is known of a model's transformers config: its config.json, else what the recipe says of it.

    It is empty, or lacks fields, where neither says anything. The network is never asked.
    """
    spec = recipe.model
    if spec.path is None:
        vocab_size = recipe.tokenizer.train_vocab_size
        padded = {"vocab_size": -(-vocab_size // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE} if vocab_size else {}
        return padded | spec.config
    for file in _config_files(spec.path, spec.revision):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            return content
    return dict(spec.config)


def _config_files(path: str, revision: str | None) -> Iterator[Path]:
    folder = Path(path)
    if folder.is_dir():
        yield folder / "config.json"
        return
    snapshots = _snapshots(path)
    try:
        commit = (snapshots.parent / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision or ""
    if commit:
        yield snapshots / commit / "config.json"
    yield from sorted(snapshots.glob("*/config.json"))


def _snapshots(name: str) -> Path:
    return hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots"
