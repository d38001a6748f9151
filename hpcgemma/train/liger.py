"""Liger's kernels: norms, rotary embedding and MLP in one kernel each, on a GPU (Hsu et al. 2024)."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from hpcgemma.errors import InputError


def check_liger(device: torch.device) -> None:
    """Check that Liger's kernels can run here.

    Raises:
        InputError: There is no GPU, or the package is not installed.
    """
    problem = None
    if device.type != "cuda":
        problem = f"need a GPU, and this rank computes on {device.type}"
    elif find_spec("liger_kernel") is None:
        problem = "need the package liger-kernel, which is not installed"
    if problem is not None:
        raise InputError(
            f"training.liger_kernels {problem}", "pip install liger-kernel, or --set training.liger_kernels=false"
        )


def use_liger(model: Any) -> str:
    """Put Liger's kernels into a transformers model, and return a sentence on it.

    Its loss is not used: ours is chunked already, and applies softcap and scale for any model.

    Raises:
        InputError: Liger does not know this model; by itself it would say nothing and do nothing.
    """
    patch: Any = import_module("liger_kernel.transformers.monkey_patch")
    model_type = model.config.model_type
    if model_type not in patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InputError(
            f"training.liger_kernels: liger-kernel has none for {model_type}", "--set training.liger_kernels=false"
        )
    patch._apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
    return f"kernels: Liger's norms, rotary embedding and MLP for {model_type}"
