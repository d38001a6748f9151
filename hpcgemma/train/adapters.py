"""LoRA and DoRA adapters, through peft, and how many parameters they train."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import LoraSpec
from hpcgemma.train.anatomy import is_tied, text_decoder_of
from hpcgemma.train.quantization import quantized_layers

_ADAPTABLE = (nn.Linear, nn.Embedding, Conv1D)


def add_adapters(model: Any, lora: LoraSpec, seed: int, *, empty: bool = False) -> nn.Module:
    """Return the model with adapters; all its own weights are frozen but those in ``modules_to_save``.

    Adapters go on the text decoder only: a vision tower has layers of the same names.

    Args:
        model: A transformers model.
        lora: Rank, scaling, targets.
        seed: Seed of the adapters' random start.
        empty: Whether the adapters are made without numbers, on the meta device.

    Raises:
        InputError: A target is no module of the model, or its output head; or a tied weight would be untied.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    adaptable = _adaptable(model)
    _check_modules(model, lora, adaptable)
    tied = is_tied(model)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_dora=lora.dora,
        target_modules=_targets(model, lora),
        fan_in_fan_out=any(isinstance(adaptable[name], Conv1D) for name in lora.target_modules),  # GPT-2's layers
        modules_to_save=list(lora.modules_to_save) or None,
        # Without this, embedding and head become two copies that drift apart (peft#1750).
        ensure_weight_tying=tied and bool({"embed_tokens", "lm_head"} & set(lora.modules_to_save)),
    )
    torch.manual_seed(seed)
    # Not peft's own low_cpu_mem_usage, which unties modules_to_save.
    with torch.device("meta") if empty else nullcontext():
        adapted: nn.Module = get_peft_model(model, config)
    if tied and not is_tied(adapted):
        raise InputError(
            f"lora.modules_to_save {', '.join(lora.modules_to_save)}: peft unties it from the matrix that it shares",
            "name the input embeddings and the output head both, or neither",
        )
    return adapted


def describe_parameters(model: nn.Module) -> str:
    """Return how many parameters are trained, and where they are; a quantized weight counts as many as it packs."""
    packed = {id(layer.weight): layer.in_features * layer.out_features for layer in quantized_layers(model)}
    # ZeRO-3 leaves an empty tensor in a parameter's place, and its size beside it.
    sizes = {
        name: packed.get(id(each), getattr(each, "ds_numel", each.numel())) for name, each in model.named_parameters()
    }
    trainable = {name: sizes[name] for name, each in model.named_parameters() if each.requires_grad}
    total, count = sum(sizes.values()), sum(trainable.values())
    adapters = sum(size for name, size in trainable.items() if "lora_" in name)
    parts = ""
    if 0 < adapters <= count:
        parts = f" = {adapters:,} in adapters + {count - adapters:,} in modules trained whole"
    return f"trainable params: {count:,}{parts} || all params: {total:,} || trainable%: {100 * count / total:.4f}"


def _targets(model: Any, lora: LoraSpec) -> list[str] | str:
    """Return the targets by name; as a pattern where modules outside the text decoder have such names too."""
    decoder = text_decoder_of(model)
    inside = {id(module) for module in decoder.modules()}
    targets = set(lora.target_modules)
    outside = [name for name, each in model.named_modules() if id(each) not in inside and _last(name) in targets]
    if not outside:
        return list(lora.target_modules)
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    return rf"{re.escape(prefix)}\..*\.({'|'.join(map(re.escape, lora.target_modules))})"


def _adaptable(model: Any) -> dict[str, nn.Module]:
    """Return modules that can have an adapter, one of each name."""
    head = model.get_output_embeddings()
    inside = {id(module) for module in text_decoder_of(model).modules()} | {id(head)}
    return {
        _last(name): each for name, each in model.named_modules() if id(each) in inside and isinstance(each, _ADAPTABLE)
    }


def _check_modules(model: Any, lora: LoraSpec, adaptable: dict[str, nn.Module]) -> None:
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    names = {_last(name) for name, _ in model.named_modules()}
    for field, valid in (("target_modules", set(adaptable)), ("modules_to_save", names)):
        missing = sorted(set(getattr(lora, field)) - valid)
        if missing:
            raise InputError(
                f"lora.{field}: the model has no module {', '.join(missing)}", f"valid: {', '.join(sorted(adaptable))}"
            )
    for name in lora.target_modules:
        if adaptable[name] is head or (adaptable[name] is embeddings and is_tied(model)):
            raise InputError(
                f"lora.target_modules: an adapter on {name} is not supported, it is the output head"
                + (", tied to the input embeddings" if is_tied(model) else ""),
                f"train it whole: --set lora.modules_to_save='[{name}]', and drop it from lora.target_modules",
            )


def _last(name: str) -> str:
    return name.rpartition(".")[2]
