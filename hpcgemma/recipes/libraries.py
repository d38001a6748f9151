"""Which libraries a recipe uses, in which versions they are installed, and which of them decide the result."""

from __future__ import annotations

import platform
from importlib import metadata

from hpcgemma.recipes.types import Recipe

_SHOWN_ONLY = ("numpy", "safetensors", "tokenizers")
"""What a resumed run has of these is the same in every version: the order of rows (NEP 19), files, and tokens that were
made before."""


def library_versions(recipe: Recipe) -> dict[str, str]:
    """Return the versions of Python and of the libraries that a recipe uses, as far as they are installed here."""
    versions = {"python": platform.python_version()}
    for name in sorted((*_deciding(recipe), *_SHOWN_ONLY)):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def decides(name: str, before: str, now: str) -> bool:
    """Return whether another version of a library may change the result, if only in the last bits.

    Of Python the minor version does: sum() of floats rounds otherwise since 3.12 (What's New In Python 3.12).
    """
    if name == "python":
        return before.split(".")[:2] != now.split(".")[:2]
    return name not in _SHOWN_ONLY


def _deciding(recipe: Recipe) -> list[str]:
    strategy = recipe.strategy.name
    uses = {
        "accelerate": strategy in ("auto", "ddp"),
        "bitsandbytes": recipe.model.quantization is not None or recipe.optimizer.name == "adamw_8bit",
        "deepspeed": strategy == "deepspeed",
        "liger-kernel": recipe.training.liger_kernels,
        "peft": recipe.lora is not None,
        "pillow": recipe.model.kind == "vision",
        "torch_xla": strategy == "xla",
    }
    return ["torch", "transformers", *(name for name, is_used in uses.items() if is_used)]
