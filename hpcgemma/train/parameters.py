"""A model's parameters by the names they have in the bare model, whatever wraps its layers."""

from __future__ import annotations

import torch
from torch import nn

# What activation checkpointing and torch.compile add to the name of a parameter.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def plain_name(name: str) -> str:
    """Return a name without what wrappers added to it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def plain_names(model: nn.Module, *, remove_duplicate: bool = True) -> dict[str, nn.Parameter]:
    """Return parameters by name; tied ones once, or under each of their names."""
    return {plain_name(name): each for name, each in model.named_parameters(remove_duplicate=remove_duplicate)}


def aliases(model: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights that a tied parameter has under its other names."""
    first = {id(parameter): name for name, parameter in plain_names(model).items()}
    return {
        name: weights[first[id(parameter)]]
        for name, parameter in plain_names(model, remove_duplicate=False).items()
        if name not in weights and first[id(parameter)] in weights
    }
