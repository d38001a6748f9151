"""Paths of a recipe: relative to where it was submitted, absolute in run.yaml."""

from __future__ import annotations

from pathlib import Path

from hpcgemma.recipes.types import Recipe


def with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with data files, and model and tokenizer folders that exist, as absolute paths.

    A model or tokenizer that is no folder stays as it is: the name of a hub repository.
    """

    def file(text: str | None) -> str | None:
        return None if text is None else str((folder / Path(text).expanduser()).absolute())

    def repository(text: str | None) -> str | None:
        if text is None:
            return None
        path = folder / Path(text).expanduser()
        return str(path.absolute()) if path.is_dir() else text

    data = recipe.data.model_copy(update={"train": file(recipe.data.train), "eval": file(recipe.data.eval)})
    model = recipe.model.model_copy(update={"path": repository(recipe.model.path)})
    tokenizer = recipe.tokenizer.model_copy(update={"path": repository(recipe.tokenizer.path)})
    return recipe.model_copy(update={"data": data, "model": model, "tokenizer": tokenizer})
