"""Tiny models of many kinds, and recipes for them."""

from __future__ import annotations

from typing import Any

import torch

from hpcgemma.recipes.types import Recipe
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.model import BuiltModel, build_model
from tests.train.launch import recipe_with

CPU = torch.device("cpu")

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
_GEMMA: dict[str, Any] = {**_SMALL, "head_dim": 16}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "vision_use_head": False,
}
_GEMMA_4: dict[str, Any] = {
    **_GEMMA,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "final_logit_softcapping": 30.0,
}

SHAPES: dict[str, dict[str, Any]] = {
    "gemma": {"model_type": "gemma", **_GEMMA},
    "gemma2": {"model_type": "gemma2", **_GEMMA, "query_pre_attn_scalar": 16},
    "gemma3_text": {"model_type": "gemma3_text", **_GEMMA},
    "gemma4_text": {"model_type": "gemma4_text", **_GEMMA_4},
    "qwen2": {"model_type": "qwen2", **_SMALL, "tie_word_embeddings": False},
    "llama": {"model_type": "llama", **_SMALL},
    "mistral": {"model_type": "mistral", **_SMALL},
    "phi3": {"model_type": "phi3", **_SMALL},
    "cohere": {"model_type": "cohere", **_SMALL, "logit_scale": 0.25},
    "granite": {"model_type": "granite", **_SMALL, "logits_scaling": 3.0},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
}
"""Shapes of models of text."""

VISION_SHAPES: dict[str, dict[str, Any]] = {
    "gemma3": {
        "model_type": "gemma3",
        "text_config": _GEMMA,
        "vision_config": {"model_type": "siglip_vision_model", **_VISION},
        "mm_tokens_per_image": 1,
    },
    "gemma4": {
        "model_type": "gemma4",
        "text_config": _GEMMA_4,
        "vision_config": {
            **_GEMMA,
            "num_hidden_layers": 1,
            "num_key_value_heads": 2,
            "patch_size": 4,
            "position_embedding_size": 64,
        },
    },
}
"""Shapes of models of images and text."""


def recipe_of(shape: str, changes: dict[str, Any] | None = None) -> Recipe:
    """Return a recipe of a tiny model with random weights, with some fields changed."""
    content = recipe_with({})
    content["model"] = {
        "kind": "vision" if shape in VISION_SHAPES else "text",
        "config": VISION_SHAPES.get(shape) or SHAPES[shape],
    }
    for path, value in (changes or {}).items():
        *sections, field = path.split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    return Recipe.model_validate(content)


def built(shape: str, prepared: PreparedData, changes: dict[str, Any] | None = None, **options: Any) -> BuiltModel:
    """Build a tiny model."""
    return build_model(recipe_of(shape, changes), prepared, CPU, **options)


def some_ids(rows: int = 2, tokens: int = 12) -> torch.Tensor:
    """Return the ids of a few rows."""
    return torch.randint(6, 300, (rows, tokens), generator=torch.Generator().manual_seed(0))
