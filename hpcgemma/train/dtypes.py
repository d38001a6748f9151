"""In what precision weights are held: trained ones and frozen ones each in their own."""

from __future__ import annotations

import torch
from torch import nn

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import TrainingSpec


def trained_dtype(training: TrainingSpec) -> torch.dtype:
    """Return what trained weights are held in.

    Raises:
        InputError: The recipe computes in a precision that its trained weights do not have.
    """
    if training.trained_weights == "fp32":
        return torch.float32
    if training.precision != "bf16":
        raise InputError(
            f"training.trained_weights bf16 contradicts training.precision {training.precision}",
            "--set training.precision=bf16, or --set training.trained_weights=fp32",
        )
    return torch.bfloat16


def frozen_dtype(training: TrainingSpec) -> torch.dtype:
    """Return what frozen weights are held in, and quantized ones are computed in.

    Raises:
        InputError: It is fp16.
    """
    if training.precision == "fp16":
        raise InputError(
            "training.precision fp16 overflows in Gemma's activations (transformers#36822)",
            "--set training.precision=bf16",
        )
    return torch.bfloat16 if training.precision == "bf16" else torch.float32


def set_dtypes(model: nn.Module, trained: torch.dtype, frozen: torch.dtype | None) -> None:
    """Hold trained weights in one precision and, where it is given, frozen ones in another.

    An update of a bf16 weight is often smaller than its last bit, which is why trained weights have their own.
    Quantized weights stay as they are; so do buffers.
    """
    for parameter in model.parameters():
        wanted = trained if parameter.requires_grad else frozen
        if wanted is not None and parameter.is_floating_point() and not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.to(wanted)
