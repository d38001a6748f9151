"""The optimizer over the trained parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import OptimizerSpec
from hpcgemma.train.quantization import import_bitsandbytes


def build_optimizer(parameters: Mapping[str, nn.Parameter], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe.

    Matrices decay; vectors, which are norms and biases, do not.

    Args:
        parameters: What is trained, by name.
        spec: Which optimizer.
    """
    trained = list(parameters.values())
    groups = [
        {"params": [each for each in trained if _is_matrix(each)], "weight_decay": spec.weight_decay},
        {"params": [each for each in trained if not _is_matrix(each)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if spec.name == "adafactor":
        from hpcgemma.train.adafactor import Adafactor

        return Adafactor(
            groups,
            {parameter: name for name, parameter in parameters.items()},
            lr=spec.learning_rate,
            clip_threshold=spec.clip_threshold,
            decay_exponent=spec.decay_exponent,
        )
    betas = (spec.betas[0], spec.betas[1])
    if spec.name == "adamw_8bit":
        bitsandbytes: Any = import_bitsandbytes()
        if bitsandbytes is None:
            raise InputError(
                "optimizer.name adamw_8bit needs the package bitsandbytes", "pip install 'hpcgemma[quantization]'"
            )
        eight_bit: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
            groups, lr=spec.learning_rate, betas=betas, eps=spec.eps
        )
        return eight_bit
    return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=betas, eps=spec.eps, fused=spec.fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Whether a parameter has two dimensions or more; ZeRO-3 leaves an empty vector there, and the shape beside it."""
    return len(getattr(parameter, "ds_shape", parameter.shape)) >= 2
