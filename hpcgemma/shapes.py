"""A model's shape, as its transformers config says it, and the parameters that follow. Pure; no torch.

Counts are exact for the model types of `KNOWN_TYPES`; a test compares them with transformers' own models. Of any other
type nothing is guessed: its shape is None, and who asks says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# What transformers fills in where a config.json is silent, as Gemma 3's multimodal ones are (transformers 5.23).
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {
        "vocab_size": 256000,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "attn_logit_softcapping": None,
    },
    "gemma2": {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "attn_logit_softcapping": None,
    },
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
    "qwen3": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "vision_use_head": True,
}
KNOWN_TYPES = (*_TEXT_DEFAULTS, "gemma3")
"""Values of `model_type` whose shape is understood; gemma3 is the multimodal one."""

HEAD, EMBEDDINGS = "lm_head", "embed_tokens"
"""What transformers calls the output head and the input embeddings in all these models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """A decoder: embeddings, layers of attention and gated feed-forward, a last norm, a head."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    is_tied: bool
    """Whether the output head is the input embeddings."""
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    norms_per_layer: int
    has_qk_norm: bool
    """Whether queries and keys are normalized per head."""
    attention_softcap: float | None
    """Cap of the attention scores; None is none."""
    final_softcap: float | None
    """Cap of the logits; None is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionShape:
    """A SigLIP tower, and the projector that makes its patches the decoder's tokens."""

    hidden_size: int
    intermediate_size: int
    layers: int
    image_size: int
    patch_size: int
    channels: int
    has_head: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder, with a vision tower or without."""

    text: TextShape
    vision: VisionShape | None = None


@dataclass(frozen=True, slots=True)
class LinearLayers:
    """Linear layers of one name and one size."""

    inputs: int
    outputs: int
    count: int
    has_bias: bool

    @property
    def weights(self) -> int:
        """Elements of all their matrices, without biases."""
        return self.inputs * self.outputs * self.count


def shape_of(config: Mapping[str, Any], kind: Literal["text", "vision"] = "text") -> ModelShape | None:
    """Return the shape that a transformers config describes; None where its model type is not understood.

    Args:
        config: A config.json, or the fields of one.
        kind: text leaves the vision tower of a multimodal config out, as training on text does.
    """
    try:
        if config.get("model_type") != "gemma3":
            return _decoder(config)
        tied = {name: config[name] for name in ("tie_word_embeddings",) if name in config}
        text = _decoder({"model_type": "gemma3_text", **tied, **config.get("text_config", {})})
        if text is None or kind == "text":
            return text
        return ModelShape(text=text.text, vision=_vision_shape(config.get("vision_config", {})))
    except (TypeError, ValueError, AttributeError):  # a field that is no number, or no mapping
        return None


def embedding_parameters(text: TextShape) -> int:
    """Return the parameters of the input embeddings."""
    return text.vocab_size * text.hidden_size


def head_parameters(text: TextShape) -> int:
    """Return the parameters of the output head that are its own: none where it is tied."""
    return 0 if text.is_tied else text.vocab_size * text.hidden_size


def layer_parameters(text: TextShape) -> int:
    """Return the parameters of one decoder layer."""
    matrices = sum(
        linear.weights // text.layers + linear.has_bias * linear.outputs for linear in _text_linears(text).values()
    )
    head_norms = 2 * text.head_dim if text.has_qk_norm else 0
    return matrices + text.norms_per_layer * text.hidden_size + head_norms


def text_parameters(text: TextShape) -> int:
    """Return the parameters of the decoder, tied ones once."""
    last_norm = text.hidden_size
    return embedding_parameters(text) + text.layers * layer_parameters(text) + last_norm + head_parameters(text)


def tower_parameters(vision: VisionShape) -> int:
    """Return the parameters of a SigLIP vision tower."""
    hidden, inner = vision.hidden_size, vision.intermediate_size
    patches = (vision.image_size // vision.patch_size) ** 2
    stem = vision.channels * vision.patch_size**2 * hidden + hidden + patches * hidden
    attention = 4 * (hidden * hidden + hidden)
    feed_forward = 2 * hidden * inner + inner + hidden
    norm = 2 * hidden
    layer = attention + feed_forward + 2 * norm
    head = hidden + attention + norm + feed_forward if vision.has_head else 0
    return stem + vision.layers * layer + norm + head


def projector_parameters(vision: VisionShape, text: TextShape) -> int:
    """Return the parameters of Gemma 3's projector from patches to tokens."""
    return vision.hidden_size * text.hidden_size + vision.hidden_size


def model_parameters(shape: ModelShape) -> int:
    """Return all parameters of a model, tied ones once."""
    if shape.vision is None:
        return text_parameters(shape.text)
    vision = tower_parameters(shape.vision) + projector_parameters(shape.vision, shape.text)
    return text_parameters(shape.text) + vision


def linear_layers(shape: ModelShape) -> dict[str, list[LinearLayers]]:
    """Return the linear layers of decoder and tower, by the name that adapters target them with."""
    found = {name: [linear] for name, linear in _text_linears(shape.text).items()}
    if shape.vision is not None:
        for name, linear in _tower_linears(shape.vision).items():
            found.setdefault(name, []).append(linear)
    return found


def _text_linears(text: TextShape) -> dict[str, LinearLayers]:
    hidden, inner, layers = text.hidden_size, text.intermediate_size, text.layers
    queries, keys = text.heads * text.head_dim, text.kv_heads * text.head_dim
    return {
        "q_proj": LinearLayers(hidden, queries, layers, text.qkv_bias),
        "k_proj": LinearLayers(hidden, keys, layers, text.qkv_bias),
        "v_proj": LinearLayers(hidden, keys, layers, text.qkv_bias),
        "o_proj": LinearLayers(queries, hidden, layers, text.output_bias),
        "gate_proj": LinearLayers(hidden, inner, layers, text.mlp_bias),
        "up_proj": LinearLayers(hidden, inner, layers, text.mlp_bias),
        "down_proj": LinearLayers(inner, hidden, layers, text.mlp_bias),
    }


def _tower_linears(vision: VisionShape) -> dict[str, LinearLayers]:
    hidden, inner, layers = vision.hidden_size, vision.intermediate_size, vision.layers
    square = LinearLayers(hidden, hidden, layers, has_bias=True)
    return {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), square),
        "fc1": LinearLayers(hidden, inner, layers + vision.has_head, has_bias=True),
        "fc2": LinearLayers(inner, hidden, layers + vision.has_head, has_bias=True),
    }


def _decoder(config: Mapping[str, Any]) -> ModelShape | None:
    model_type = str(config.get("model_type"))
    if model_type not in _TEXT_DEFAULTS:
        return None
    fields = _TEXT_DEFAULTS[model_type] | dict(config)
    heads = int(fields["num_attention_heads"])
    softcap, final_softcap = fields.get("attn_logit_softcapping"), fields.get("final_logit_softcapping")
    attention_bias = bool(fields.get("attention_bias", False))
    return ModelShape(
        text=TextShape(
            model_type=model_type,
            vocab_size=int(fields["vocab_size"]),
            hidden_size=int(fields["hidden_size"]),
            intermediate_size=int(fields["intermediate_size"]),
            layers=int(fields["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(fields.get("num_key_value_heads") or heads),
            head_dim=int(fields.get("head_dim") or int(fields["hidden_size"]) // heads),
            is_tied=bool(fields["tie_word_embeddings"]),
            qkv_bias=attention_bias or model_type == "qwen2",
            output_bias=attention_bias,
            mlp_bias=bool(fields.get("mlp_bias", False)),
            norms_per_layer=4 if model_type in ("gemma2", "gemma3_text") else 2,
            has_qk_norm=model_type in ("gemma3_text", "qwen3"),
            attention_softcap=float(softcap) if softcap else None,
            final_softcap=float(final_softcap) if final_softcap else None,
        )
    )


def _vision_shape(config: Mapping[str, Any]) -> VisionShape:
    fields = _VISION_DEFAULTS | dict(config)
    return VisionShape(
        hidden_size=int(fields["hidden_size"]),
        intermediate_size=int(fields["intermediate_size"]),
        layers=int(fields["num_hidden_layers"]),
        image_size=int(fields["image_size"]),
        patch_size=int(fields["patch_size"]),
        channels=int(fields["num_channels"]),
        has_head=bool(fields["vision_use_head"]),
    )
