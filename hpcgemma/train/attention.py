"""The attention implementation: the fastest that is exact for the model, and never another one in silence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._triton import has_triton
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.recipes.types import Recipe

FLASH_MAX_HEAD = 256
"""Dimensions of a head that flash-attn 2 takes at most."""

# What a class of transformers says of itself; eager is always there.
_SUPPORT = {
    "flash_attention_2": "_supports_flash_attn",
    "flex_attention": "_supports_flex_attn",
    "sdpa": "_supports_sdpa",
}


@dataclass(frozen=True, slots=True)
class Demands:
    """What a model asks of its attention."""

    softcap: float | None
    """Cap of the scores; None: none."""
    head_size: int
    """Dimensions of its largest heads."""
    dropout: float
    """Share of scores that are dropped in training."""
    has_images: bool
    """Whether tokens of an image see each other, also those that come later."""

    @classmethod
    def of(cls, config: Any, *, has_images: bool) -> Demands:
        """Read them from a transformers config."""
        text = config.get_text_config()
        # Gemma 4 has larger heads in the layers that see the whole context.
        layers = list(text.per_layer_config) if getattr(text, "is_heterogeneous", False) else [text]
        sizes = [getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads for layer in layers]
        return cls(
            softcap=getattr(text, "attn_logit_softcapping", None),
            head_size=max(sizes),
            dropout=float(getattr(text, "attention_dropout", None) or 0.0),
            has_images=has_images,
        )


def choose_attention(recipe: Recipe, demands: Demands, model_class: Any, device: torch.device) -> tuple[str, str]:
    """Return the attention implementation and why it was taken.

    Gemma 2 caps its attention scores with a tanh, which sdpa cannot; taking sdpa silently would change the model.
    flash-attn is taken only where it is installed: transformers would else fetch a kernel from the hub.

    Args:
        recipe: What the user wants, and the precision.
        demands: What the model needs.
        model_class: Its class in transformers, which says what it supports.
        device: What it runs on.

    Raises:
        InputError: The recipe's choice cannot run here, or is not exact for this model.
    """
    wanted = recipe.model.attention

    def obstacle(name: str) -> str | None:
        return _obstacle(name, demands, model_class, device, recipe.training.precision)

    if wanted != "auto":
        if (problem := obstacle(wanted)) is not None:
            raise InputError(f"model.attention {wanted}: {problem}", "--set model.attention=auto")
        return wanted, "the recipe says so"
    second = "sdpa" if demands.softcap is None else "flex_attention"
    skipped: list[str] = []
    for name in ("flash_attention_2", second):
        if (problem := obstacle(name)) is None:
            return name, "; ".join([_merit(name, demands), *skipped])
        skipped.append(f"not {name}: {problem}")
    return "eager", "; ".join([_merit("eager", demands), *skipped])


def attention_of_parts(config: Any, chosen: str) -> dict[str, str]:
    """Return the implementation for a model, under "", and for each part with a section of its own in the config.

    A part that does not support what was chosen, as what Gemma 4 hears with, takes eager, which is always exact.
    """
    classes: Any = MODEL_MAPPING
    found = {"": chosen}
    for name in config.sub_configs:
        part = classes.get(type(getattr(config, name, None)), None)
        found[name] = chosen if part is None or _supports(part, chosen) else "eager"
    return found


def check_attention(model: Any, chosen: str) -> list[str]:
    """Check that transformers took what was chosen, and return sentences on parts that do not support it.

    Raises:
        HpcGemmaError: It took another one.
    """
    notes = {}
    for module in model.modules():
        if not isinstance(module, PreTrainedModel):
            continue
        name, found = type(module).__name__, module.config._attn_implementation
        if found == "eager" and not _supports(type(module), chosen):
            notes[name] = f"attention: eager in {name}, which does not support {chosen}"
        elif found != chosen:
            raise HpcGemmaError(
                f"{name} computes its attention with {found}, and {chosen} was chosen",
                f"--set model.attention={found}",
            )
    return list(notes.values())


def _obstacle(name: str, demands: Demands, model_class: Any, device: torch.device, precision: str) -> str | None:
    """Return why an implementation cannot be taken; None where it can."""
    if name == "sdpa" and demands.softcap is not None:
        return f"it cannot apply this model's softcap of {demands.softcap:g}"
    if not _supports(model_class, name):
        return f"{model_class.__name__} does not support it"
    if name == "sdpa" and device.type == "xla":
        return "XLA makes the same operations of it, and autocast does not know it there"  # torch_xla 2.9
    if name == "flash_attention_2":
        return _flash_obstacle(demands, device, precision)
    if name == "flex_attention":
        return _flex_obstacle(demands, device)
    return None


def _supports(model_class: Any, name: str) -> bool:
    return name not in _SUPPORT or bool(getattr(model_class, _SUPPORT[name], False))


def _flash_obstacle(demands: Demands, device: torch.device, precision: str) -> str | None:
    if device.type != "cuda":
        return "there is no GPU for flash-attn"
    if not is_flash_attn_2_available():
        return "the package flash-attn is not installed"
    if precision != "bf16":
        return f"it computes in bf16, and training.precision is {precision}"
    if demands.head_size > FLASH_MAX_HEAD:
        return f"it takes heads of {FLASH_MAX_HEAD} dimensions at most, and this model has {demands.head_size}"
    if demands.has_images:
        return "it cannot let the tokens of an image see each other"  # transformers drops that mask in silence
    return None


def _flex_obstacle(demands: Demands, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "it has no backward pass without a GPU"
    if not has_triton():
        return "triton, which compiles it, does not work here"
    if demands.dropout > 0:
        return f"it has no dropout, and this model's attention_dropout is {demands.dropout:g}"
    return None


def _merit(name: str, demands: Demands) -> str:
    if demands.softcap is not None:
        return f"it applies the softcap of {demands.softcap:g} on the attention scores"
    if name == "eager":
        return "the only one that this model supports here"
    return "no softcap on the attention scores, so it is exact"
