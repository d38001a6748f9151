"""What a checkpoint was made with: recipe, data, code, libraries; and in what others differ from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpcgemma.changes import Change
from hpcgemma.recipes.fingerprint import recipe_changes
from hpcgemma.recipes.libraries import decides
from hpcgemma.recipes.types import Recipe

STATE_NAME = "trainer_state.json"
"""The file of a checkpoint that says where the training stands, and what made it."""

_SHOWN_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What makes a checkpoint. None, or nothing, stands for what is not known and so not compared."""

    recipe: Recipe | None = None
    data: str | None = None
    """Hash of the rows and of all that made them into tokens."""
    code: str | None = None
    """Hash of hpcgemma's own Python files."""
    libraries: Mapping[str, str]
    """Versions by name."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "recipe": None if self.recipe is None else self.recipe.model_dump(mode="json"),
            "data": self.data,
            "code": self.code,
            "libraries": dict(self.libraries),
        }


def provenance_of(checkpoint: Path) -> Provenance:
    """Return what a checkpoint's own files say of how it was made; what they do not say is not known."""
    try:
        made_with = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))["made_with"]
        code, data, libraries = made_with["code"], made_with["data"], dict(made_with["libraries"])
        recipe = made_with["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return Provenance(libraries={})
    try:
        return Provenance(recipe=Recipe.model_validate(recipe), data=data, code=code, libraries=libraries)
    except ValidationError:  # a recipe of another version of hpcgemma; its hash is compared all the same
        return Provenance(data=data, code=code, libraries=libraries)


def changes_since(before: Provenance, now: Provenance) -> list[Change]:
    """Return in what the one differs from the other, as far as both are known."""
    found: list[Change] = []
    if before.recipe is not None and now.recipe is not None:
        found += recipe_changes(before.recipe, now.recipe)
    if before.data and now.data and before.data != now.data:
        found.append(Change(kind="data", field="data", before=_short(before.data), now=_short(now.data)))
    if before.code and now.code and before.code != now.code:
        found.append(Change(kind="code", field="hpcgemma's code", before=_short(before.code), now=_short(now.code)))
    for name in sorted(before.libraries.keys() & now.libraries.keys()):
        old, new = before.libraries[name], now.libraries[name]
        if old != new:
            is_deciding = decides(name, old, new)
            found.append(Change(kind="libraries", field=name, before=old, now=new, decides=is_deciding))
    return found


def _short(digest: str) -> str:
    return digest[:_SHOWN_DIGITS]
