"""LoRA adapters, through peft, and what is trained in which precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import LoraSpec


def add_adapters(model: Any, lora: LoraSpec, seed: int) -> nn.Module:
    """Return the model with adapters; all its own weights are frozen but those in ``modules_to_save``.

    Args:
        model: A transformers model.
        lora: Rank, scaling, targets.
        seed: Seed of the adapters' random start.

    Raises:
        InputError: A target is no module of the model.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for field in ("target_modules", "modules_to_save"):
        missing = sorted(set(getattr(lora, field)) - names)
        if missing:
            raise InputError(
                f"lora.{field}: the model has no module {', '.join(missing)}",
                f"valid: {', '.join(sorted(_adaptable(model)))}",
            )
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        modules_to_save=list(lora.modules_to_save) or None,
        # Without this, embedding and head become two copies that drift apart (peft#1750).
        ensure_weight_tying=bool(tied and lora.modules_to_save),
    )
    torch.manual_seed(seed)
    adapted: nn.Module = get_peft_model(model, config)
    return adapted


def keep_trained_weights_in_fp32(model: nn.Module) -> None:
    """Hold trained weights in fp32: an update of a bf16 weight is often smaller than its last bit."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def describe_parameters(model: nn.Module) -> str:
    """Return how many parameters are trained, and where they are."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = {name: each.numel() for name, each in model.named_parameters() if each.requires_grad}
    count = sum(trainable.values())
    adapters = sum(size for name, size in trainable.items() if "lora_" in name)
    parts = ""
    if 0 < adapters <= count:
        parts = f" = {adapters:,} in adapters + {count - adapters:,} in modules trained whole"
    return f"trainable params: {count:,}{parts} || all params: {total:,} || trainable%: {100 * count / total:.4f}"


def _adaptable(model: nn.Module) -> set[str]:
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    }
