"""Parameters follow from a config alone, and are those of transformers' own models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from hpcgemma import shapes
from hpcgemma.recipes import load_recipe
from hpcgemma.shapes import KNOWN_TYPES, model_parameters, shape_of

GEMMA3_27B = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}


def parameters_of(config: dict[str, Any], kind: Any = "text") -> int:
    shape = shape_of(config, kind)
    assert shape is not None
    return model_parameters(shape)


def counted_by_transformers(config: dict[str, Any], model_class: Any = AutoModelForCausalLM) -> int:
    fields = {name: value for name, value in config.items() if name != "model_type"}
    with torch.device("meta"):
        model = model_class.from_config(AutoConfig.for_model(config["model_type"], **fields))
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("recipe", "billions"),
    [
        ("gemma2_9b_lora", 9.24),
        ("gemma2_2b_qlora", 2.61),
        ("gemma3_4b_cpt", 3.88),
        ("gemma3_27b_sft", 27.01),
        ("gemma3_270m_tpu", 0.27),
        ("qwen2_5_14b_qlora", 14.77),
    ],
)
def test_the_parameters_of_each_recipes_model_are_those_of_transformers(recipe: str, billions: float) -> None:
    config = load_recipe(recipe).model.config
    assert parameters_of(config) == counted_by_transformers(config)
    assert round(parameters_of(config) / 1e9, 2) == billions


def test_a_multimodal_model_counts_its_tower_and_projector() -> None:
    theirs = counted_by_transformers(GEMMA3_27B, AutoModelForImageTextToText)
    assert parameters_of(GEMMA3_27B, "vision") == theirs
    assert round(theirs / 1e9, 2) == 27.43


def test_text_alone_leaves_the_tower_out() -> None:
    text = {"model_type": "gemma3_text", **GEMMA3_27B["text_config"]}  # type: ignore[dict-item]
    assert parameters_of(GEMMA3_27B, "text") == parameters_of(text) == counted_by_transformers(text)


def test_a_tower_with_its_pooling_head_counts_that_too() -> None:
    config = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**SMALL, "head_dim": 8, "num_key_value_heads": 2}
    both = {"model_type": "gemma3", "text_config": text, "vision_config": {**config, "image_size": 64}}
    both["vision_config"]["model_type"] = "siglip_vision_model"  # type: ignore[index]
    assert parameters_of(both, "vision") == counted_by_transformers(both, AutoModelForImageTextToText)


@pytest.mark.parametrize("model_type", [name for name in KNOWN_TYPES if name != "gemma3"])
def test_where_a_config_is_silent_the_defaults_are_those_of_transformers(model_type: str) -> None:
    theirs = AutoConfig.for_model(model_type).to_dict()
    for name, value in shapes._TEXT_DEFAULTS[model_type].items():
        assert theirs.get(name) == value, name
    assert parameters_of({"model_type": model_type}) == counted_by_transformers({"model_type": model_type})


@pytest.mark.parametrize(
    "fields",
    [
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
        {"model_type": "llama", "tie_word_embeddings": True},
        {"model_type": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 2},
        {"model_type": "qwen3", "attention_bias": True, "num_key_value_heads": 2, "head_dim": 8},
        {"model_type": "mistral", "num_key_value_heads": 2, "head_dim": 8},
        {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 8, "attention_bias": True},
        {"model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": False},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_biases_groups_and_tying_are_counted_as_transformers_does(fields: dict[str, Any]) -> None:
    assert parameters_of(SMALL | fields) == counted_by_transformers(SMALL | fields)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "mixtral"},
        {"model_type": "gemma2", "hidden_size": "wide"},
        {"model_type": "gemma2", "num_attention_heads": None},
        {"model_type": "gemma3", "text_config": 7},
    ],
)
def test_a_config_that_is_not_understood_has_no_shape(config: dict[str, Any]) -> None:
    assert shape_of(config) is None
