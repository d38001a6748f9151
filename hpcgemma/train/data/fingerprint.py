"""What prepared data are made of, as a hash: the settings that decide the tokens, and the content of the files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcgemma import files
from hpcgemma.recipes.types import Recipe
from hpcgemma.train.data.sources import DataFile, Sources, data_files
from hpcgemma.train.failures import DataError

FORMAT = 2
"""Version of the prepared folder."""


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return what of a recipe decides the tokens."""
    data = recipe.data.model_dump(mode="json", exclude={"num_workers", "pin_memory"})
    return {
        "format": FORMAT,
        "data": data,
        "tokenizer": recipe.tokenizer.model_dump(mode="json"),
        "model_path": recipe.model.path if recipe.tokenizer.path is None else None,
        "revision": recipe.model.revision,
        **({"images": _image_settings(recipe)} if recipe.model.kind == "vision" else {}),
    }


def _image_settings(recipe: Recipe) -> dict[str, Any]:
    """Return what decides how an image becomes tokens and pixels; of pretrained weights, their path does."""
    config = recipe.model.config
    return {
        "tokens": config.get("mm_tokens_per_image"),
        "side": config.get("vision_config", {}).get("image_size"),
        "path": recipe.model.path,
    }


def fingerprint_of(recipe: Recipe) -> str:
    """Return a hash of a recipe's data and of what makes them into tokens."""
    return hash_of(settings_of(recipe), files_of(recipe))


def files_of(recipe: Recipe) -> list[DataFile]:
    """Return the files that a recipe's rows come from; none where a generator draws them."""
    return [] if recipe.data.generator is not None else data_files(recipe.data)


def hash_of(settings: dict[str, Any], sources: Sequence[DataFile]) -> str:
    """Return a hash of settings and of the files' content; where the files are does not matter."""
    contents = []
    for source in sources:
        try:
            size, sha256 = source.path.stat().st_size, files.sha256_of(source.path)
        except OSError as error:
            raise DataError(
                f"{source.path} cannot be read: {error.strerror}",
                "--set data.train=FILE (and data.eval), as an absolute path that the compute nodes see",
            ) from None
        contents.append({"part": source.part, "bytes": size, "sha256": sha256})
    data = {name: value for name, value in settings["data"].items() if name not in ("train", "eval")}
    train = settings["data"]["train"]
    weights = (
        [each.get("weight") if isinstance(each, dict) else 1.0 for each in train] if isinstance(train, list) else []
    )
    text = json.dumps([settings | {"data": data}, weights, contents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def image_files_hash(sources: Sources) -> str:
    """Return a hash of the names, sizes and times of all files with images that rows show.

    Their content would say more, and take as long to read as preparing them. So data are prepared anew where a file was
    only touched, but never reused where one was exchanged.
    """
    digest = hashlib.sha256()
    for folder, path in sources.image_files():
        try:
            status = path.stat()
        except OSError:  # a row that is left out, for now
            known = "not there"
        else:
            known = f"{status.st_size} {status.st_mtime_ns}"
        digest.update(f"{os.path.relpath(path, folder)}\0{known}\0".encode())
    return digest.hexdigest()


def content_hash(folder: Path | None) -> str:
    """Return a hash of a folder's files."""
    paths = [] if folder is None else sorted(path for path in folder.rglob("*") if path.is_file())
    return " ".join(f"{path.name} {files.sha256_of(path)}" for path in paths)
