"""What the trainer reads of run.yaml: the run's identity and the resolved recipe."""

from __future__ import annotations

import hashlib
import json

import yaml
from pydantic import ValidationError

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import Recipe
from hpcgemma.runs.folder import RunFolder

# What may change between two attempts of a run: it does not decide the weights.
_FREE_SECTIONS = {"name", "description", "resources", "strategy", "tensorboard", "checkpoint"}
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
    "evaluation": {"generation"},
}


def read_run(folder: RunFolder) -> tuple[str, Recipe]:
    """Return the run's id and its recipe.

    Raises:
        InputError: run.yaml is missing, damaged, or not of this version.
    """
    hint = "make the run again: hpcgemma submit"
    try:
        content = yaml.safe_load(folder.run_file.read_text(encoding="utf-8"))
        return str(content["run_id"]), Recipe.model_validate(content["recipe"])
    except OSError as error:
        raise InputError(f"{folder.run_file} cannot be read: {error.strerror}", hint) from None
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{folder.run_file} is damaged: {error!r}", hint) from None
    except ValidationError as error:
        raise InputError(f"{folder.run_file}: the recipe is not valid: {error}", hint) from None


def recipe_fingerprint(recipe: Recipe) -> str:
    """Return a hash of what decides the weights; a resume under another one is refused.

    The number of ranks, the micro-batch and the strategy are not in it: a step's rows and its loss do not depend on
    them.
    """
    content = recipe.model_dump(mode="json", exclude=_FREE_SECTIONS)
    for section, names in _FREE_FIELDS.items():
        content[section] = {key: value for key, value in content[section].items() if key not in names}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
