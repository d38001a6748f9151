"""What the trainer reads of run.yaml: the run's identity, the resolved recipe, and what may have changed."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import ValidationError

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import Recipe
from hpcgemma.runs.folder import RunFolder


def read_run(folder: RunFolder) -> tuple[str, Recipe]:
    """Return the run's id and its recipe.

    Raises:
        InputError: run.yaml is missing, damaged, or not of this version.
    """
    hint = "make the run again: hpcgemma submit"
    try:
        content = _content(folder)
        return str(content["run_id"]), Recipe.model_validate(content["recipe"])
    except OSError as error:
        raise InputError(f"{folder.run_file} cannot be read: {error.strerror}", hint) from None
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{folder.run_file} is damaged: {error!r}", hint) from None
    except ValidationError as error:
        raise InputError(f"{folder.run_file}: the recipe is not valid: {error}", hint) from None


def allowed_changes(folder: RunFolder) -> dict[str, int]:
    """Return what `hpcgemma resume --allow-change` let through, and up to the checkpoint of which step."""
    return {str(kind): int(step) for kind, step in (_content(folder).get("allowed_changes") or {}).items()}


def _content(folder: RunFolder) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(folder.run_file.read_text(encoding="utf-8"))
    return content
