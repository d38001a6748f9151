"""DeepSpeed's configuration of a recipe."""

from __future__ import annotations

from typing import Any

import torch

from hpcgemma.recipes.types import Recipe

NO_CLIPPING = 1e30
"""A norm that is never reached; without a limit DeepSpeed does not compute the norm."""

BUCKET_ELEMENTS = 200_000_000
"""Elements exchanged at once, where the recipe does not say."""


def deepspeed_config(recipe: Recipe, *, world_size: int, passes: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a recipe. Pure.

    Args:
        recipe: What to train.
        world_size: Ranks.
        passes: Forward passes of each rank in a step.
    """
    spec, training = recipe.strategy, recipe.training
    zero: dict[str, Any] = {"stage": spec.zero_stage or 2, "contiguous_gradients": True}
    if spec.reduce_bucket_size is not None:
        zero["reduce_bucket_size"] = spec.reduce_bucket_size
    if spec.allgather_bucket_size is not None:
        zero["allgather_bucket_size"] = spec.allgather_bucket_size
    if spec.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if spec.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": training.micro_batch * world_size * passes,
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": NO_CLIPPING if training.max_grad_norm is None else training.max_grad_norm,
        "bf16": {"enabled": training.precision == "bf16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own would have to be compiled on the node
        "steps_per_print": 1 << 60,
    }


def fit_buckets(zero: dict[str, Any], trained_elements: int) -> None:
    """Make no bucket larger than what fills it.

    DeepSpeed makes its buckets anew in every step, 2 GB by default, which for a small model takes 100 times longer than
    the step itself (measured on a CPU with deepspeed 0.19).

    Args:
        zero: The section zero_optimization, changed in place.
        trained_elements: Elements of all trained parameters.
    """
    for bucket in ("reduce_bucket_size", "allgather_bucket_size"):
        zero[bucket] = min(zero.get(bucket, BUCKET_ELEMENTS), max(trained_elements, 1))
