"""Paths of a recipe: relative to where it was submitted, absolute in run.yaml."""

from __future__ import annotations

from pathlib import Path

from hpcgemma.recipes.types import MixturePart, Recipe


def with_absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with data files, and model and tokenizer folders that exist, as absolute paths.

    A pattern of files stays one. A model or tokenizer that is no folder stays as it is: the name of a hub repository.
    """

    def file(text: str) -> str:
        return str((folder / Path(text).expanduser()).absolute())

    def files(entry: str | list[str] | None) -> str | list[str] | None:
        return None if entry is None else file(entry) if isinstance(entry, str) else [file(each) for each in entry]

    def part(entry: str | MixturePart) -> str | MixturePart:
        return file(entry) if isinstance(entry, str) else entry.model_copy(update={"path": file(entry.path)})

    def repository(text: str | None) -> str | None:
        if text is None:
            return None
        path = folder / Path(text).expanduser()
        return str(path.absolute()) if path.is_dir() else text

    train = recipe.data.train
    data = recipe.data.model_copy(
        update={
            "train": [part(entry) for entry in train] if isinstance(train, list) else files(train),
            "eval": files(recipe.data.eval),
        }
    )
    model = recipe.model.model_copy(update={"path": repository(recipe.model.path)})
    tokenizer = recipe.tokenizer.model_copy(update={"path": repository(recipe.tokenizer.path)})
    return recipe.model_copy(update={"data": data, "model": model, "tokenizer": tokenizer})
