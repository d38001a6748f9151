"""The parts of a model: its decoder, its layers, its head; found the same way with adapters and without.

Letters: V tokens of the vocabulary, D hidden size.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hpcgemma.errors import InputError


@dataclass(frozen=True, slots=True)
class Head:
    """What makes logits of hidden states: ``softcap * tanh(logit_scale * (hidden @ weight.T + bias) / softcap)``."""

    weight: torch.Tensor
    """V x D; the trained copy, where adapters keep one."""
    bias: torch.Tensor | None
    """V; None without one."""
    softcap: float | None
    """Limit of the logits; None: none."""
    logit_scale: float
    """Factor on the logits before the cap; 1 for all Gemmas."""


def bare_model(model: Any) -> Any:
    """Return the transformers model inside a peft model; any other model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def decoder_of(model: Any) -> nn.Module:
    """Return the module whose output has ``last_hidden_state``, which the head reads; with a vision tower, with it."""
    decoder: nn.Module = bare_model(model).base_model
    return decoder


def text_decoder_of(model: Any) -> nn.Module:
    """Return the decoder of the text alone."""
    decoder: nn.Module = bare_model(model).get_decoder()
    return decoder


def trains_tower(model: Any) -> bool:
    """Whether weights are trained that only compute where there are images: those of a tower, or of its projection."""
    base = bare_model(model)
    inside = {id(each) for each in text_decoder_of(model).parameters()}
    inside |= {id(each) for each in base.get_output_embeddings().parameters()}
    return any(each.requires_grad and id(each) not in inside for each in model.parameters())


def head_of(model: Any) -> Head:
    """Return the output head that is trained, or frozen, in this model.

    Raises:
        InputError: There is none, or adapters are on it.
    """
    base = bare_model(model)
    module = base.get_output_embeddings()
    if module is None:
        raise InputError(
            f"{type(base).__name__} has no output head over the vocabulary: it is no causal language model",
            "--set model.path to a causal language model",
        )
    if hasattr(module, "modules_to_save"):
        module = module.modules_to_save[module.active_adapters[0]]
    if not isinstance(module, nn.Linear):
        raise InputError(
            f"the output head is a {type(module).__name__}: adapters on it are not supported",
            "train it whole: name it in lora.modules_to_save, not in lora.target_modules",
        )
    return Head(module.weight, module.bias, _softcap(base), _logit_scale(base))


def layer_stacks(model: Any) -> list[tuple[str, nn.ModuleList]]:
    """Return the outermost lists of layers, with their names, in the order in which they are registered."""
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in bare_model(model).named_modules():
        is_inner = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(module, nn.ModuleList) and not is_inner and any(True for _ in module.parameters()):
            found.append((name, module))
    return found


def text_layers(model: Any) -> list[nn.Module]:
    """Return the layers of the text decoder, first to last.

    Raises:
        InputError: The model has no list of layers.
    """
    inside = {id(module) for module in text_decoder_of(model).modules()}
    stacks = [stack for _, stack in layer_stacks(model) if id(stack) in inside]
    if not stacks:
        raise InputError(
            f"{type(bare_model(model)).__name__} keeps its layers in no list that could be found",
            "--set strategy.layer_class=CLASS names them",
        )
    largest: nn.ModuleList = max(stacks, key=_size)
    return list(largest)


def decoder_layers(model: Any, layer_class: str | None) -> list[nn.Module]:
    """Return the layers that are worth sharding one by one, in the order in which they are registered.

    Args:
        model: A transformers model, or a peft model around one.
        layer_class: Their class; None takes the text decoder's, and those of a vision or audio tower beside it.

    Raises:
        InputError: No module is of that class.
    """
    if layer_class is None:
        text = {id(layer) for layer in text_layers(model)}
        inside = {id(module) for module in text_decoder_of(model).modules()}
        stacks = [stack for _, stack in layer_stacks(model)]
        return [layer for stack in stacks for layer in stack if id(layer) in text or id(layer) not in inside]
    base = bare_model(model)
    layers, wrapped = [], set()
    for module in base.modules():
        inner = getattr(module, "_checkpoint_wrapped_module", module)
        if type(inner).__name__ == layer_class and id(module) not in wrapped:
            layers.append(module)
            wrapped.add(id(inner))
    if not layers:
        counts = Counter(type(layer).__name__ for _, stack in layer_stacks(model) for layer in stack)
        repeated = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
        raise InputError(
            f"strategy.layer_class: {type(base).__name__} has no module of class {layer_class!r}",
            f"valid: {repeated or 'none repeats'}; or --set strategy.layer_class=null",
        )
    return layers


def embeddings_of(model: Any) -> Iterator[nn.Module]:
    """Yield the input embeddings: one table, and for Gemma 3n and 4 a second one for its layers."""
    yield model.get_input_embeddings()
    second = getattr(text_decoder_of(model), "embed_tokens_per_layer", None)
    if isinstance(second, nn.Module):
        yield second


def is_tied(model: Any) -> bool:
    """Return whether the output head and the input embeddings are one matrix."""
    base = bare_model(model)
    head = base.get_output_embeddings()
    return head is not None and head.weight is base.get_input_embeddings().weight


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _softcap(base: Any) -> float | None:
    # A config may name a cap that its model does not apply, as that of Gemma 3 with vision.
    cap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    return float(cap) if cap is not None and "final_logit_softcapping" in _names_read(base) else None


def _logit_scale(base: Any) -> float:
    names, config = _names_read(base), base.config.get_text_config()
    if "logit_scale" in names:  # Cohere
        return float(base.logit_scale)
    if "logits_scaling" in names and config.model_type.startswith("granite"):
        return 1.0 / float(config.logits_scaling)
    return 1.0


def _names_read(base: Any) -> tuple[str, ...]:
    """Return the names that the model's own forward pass reads."""
    names: tuple[str, ...] = inspect.unwrap(type(base).forward).__code__.co_names
    return names
