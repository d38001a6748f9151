"""Parts of a model that keep their weights while the rest is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import FreezeSpec
from hpcgemma.train.anatomy import embeddings_of, is_tied, text_layers

_NAMED_DEPTH = 3
"""Modules as deep as this are offered where a name is wrong; deeper ones are too many to list."""


def freeze(model: Any, spec: FreezeSpec) -> list[str]:
    """Freeze what a recipe names, and return sentences on what that is, and on what else it freezes.

    Args:
        model: A transformers model without adapters; all its weights are trained so far.
        spec: What to freeze.

    Raises:
        InputError: A part is not there, or nothing would be trained.
    """
    notes = []
    tied = is_tied(model)
    if spec.embeddings:
        for table in embeddings_of(model):
            table.requires_grad_(False)
        also = ", and the output head with them: they are one matrix in this model" if tied else ""
        notes.append(f"freeze.embeddings: the input embeddings are not trained{also}")
    if spec.head:
        head = model.get_output_embeddings()
        head.requires_grad_(False)
        also = ", and the input embeddings with it: they are one matrix in this model" if tied else ""
        notes.append(f"freeze.head: the output head is not trained{also}")
    if spec.layers:
        layers = text_layers(model)
        if spec.layers > len(layers):
            raise InputError(
                f"model.freeze.layers {spec.layers}: the model has {len(layers)} decoder layers",
                f"--set model.freeze.layers={len(layers) - 1} or fewer",
            )
        for layer in layers[: spec.layers]:
            layer.requires_grad_(False)
        notes.append(f"freeze.layers: the first {spec.layers} of {len(layers)} decoder layers are not trained")
    for name in spec.modules:
        frozen = _named(model, name)
        for module in frozen:
            module.requires_grad_(False)
        size = sum(each.numel() for module in frozen for each in module.parameters())
        notes.append(f"freeze.modules: {name} is not trained ({size:,} weights)")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "model.freeze leaves nothing to be trained", "freeze less, or train adapters: --set lora.rank=16"
        )
    return notes


def check_freeze(spec: FreezeSpec, *, has_adapters: bool) -> None:
    """Check that a recipe does not freeze where adapters do so by themselves.

    Raises:
        InputError: It does.
    """
    if has_adapters and spec != FreezeSpec():
        raise InputError(
            "model.freeze and lora are both set: adapters freeze the whole model but for lora.modules_to_save",
            "--set lora=null, or drop model.freeze",
        )


def _named(model: nn.Module, name: str) -> Sequence[nn.Module]:
    """Return the modules of a dotted name, or of the end of one."""
    found = [each for path, each in model.named_modules() if path == name or path.endswith(f".{name}")]
    if not found or not any(True for module in found for _ in module.parameters()):
        paths = [path.split(".") for path, each in model.named_modules() if any(True for _ in each.parameters())]
        names = {path[-1] for path in paths if 0 < len(path) <= _NAMED_DEPTH and path[-1] and not path[-1].isdigit()}
        raise InputError(
            f"model.freeze.modules: the model has no module {name!r} with weights", f"valid: {', '.join(sorted(names))}"
        )
    return found
