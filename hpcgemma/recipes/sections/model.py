"""The model of a recipe: which, in how many bits, and what of it is trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from hpcgemma.configfile import Section


class QuantizationSpec(Section):
    """Weights kept in few bits while adapters train (QLoRA, Dettmers et al. 2023)."""

    bits: Literal[4] = 4
    """Bits per weight."""
    type: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit data type."""
    double_quantization: bool = True
    """Quantize the quantization constants too; saves 0.4 bits per weight."""


class FreezeSpec(Section):
    """Parts of the model that keep their weights while the rest is trained. Adapters freeze the model by themselves."""

    embeddings: bool = False
    """The input embeddings; where the output head is tied to them, the head too."""
    head: bool = False
    """The output head."""
    layers: int = Field(0, ge=0)
    """The first so many decoder layers."""
    modules: list[str] = []
    """Modules by name, such as vision_tower; with all that is in them."""


class ModelSpec(Section):
    """Which model, and how it is loaded."""

    kind: Literal["text", "vision"] = "text"
    """text: a causal language model, also out of a checkpoint with a vision tower; vision: images and text."""

    path: str | None = None
    """Folder, or hub name, of pretrained weights; null starts from random weights of the shape in `config`."""
    revision: str | None = None
    """Commit or tag of the hub repository; null is the newest in the cache."""
    config: dict[str, Any] = {}
    """Fields of the transformers config: the whole shape of a random start (with `model_type`); for pretrained
    weights, what their config is expected to say, checked when they are loaded."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """Attention implementation; auto takes one that applies the model's softcap exactly."""
    quantization: QuantizationSpec | None = None
    """Quantization of the frozen weights; null keeps them whole."""
    freeze: FreezeSpec = FreezeSpec()
    """What is not trained, where all parameters would be."""


class LoraSpec(Section):
    """Low-rank adapters (Hu et al. 2021), through peft."""

    rank: int = Field(16, gt=0)
    """Rank r of the adapters."""
    alpha: int = Field(32, gt=0)
    """Scaling; the adapter's output is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )
    """Names of the linear layers that get an adapter."""
    dora: bool = False
    """Train the weights' magnitude apart from their direction (DoRA, Liu et al. 2024)."""
    modules_to_save: list[str] = []
    """Modules trained whole beside the adapters; tied weights stay tied."""
