"""Which model a recipe means, and which ones are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hpcgemma.errors import InputError
from hpcgemma.train.architecture import check_config
from hpcgemma.train.data.prepared import PreparedData
from tests.train.models import SHAPES, VISION_SHAPES, built, some_ids


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({**SHAPES["gemma3_text"], "use_bidirectional_attention": True}, "its tokens see those that come later"),
        ({**SHAPES["gemma3_text"], "architectures": ["Gemma3TextModel"]}, "its weights are of a Gemma3TextModel"),
        ({"model_type": "bert"}, "it is an encoder"),
        ({"model_type": "t5"}, "it has an encoder and a decoder"),
        ({"model_type": "siglip_vision_model"}, "transformers has no such model of type 'siglip_vision_model'"),
    ],
)
def test_models_that_do_not_predict_the_next_token_are_refused(
    prepared: PreparedData, config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=f"is no causal language model: {problem}"):
        built("gemma2", prepared, {"model.config": config})


@pytest.mark.parametrize(
    ("kind", "config", "problem"),
    [
        ("text", VISION_SHAPES["gemma3"], "model_type 'gemma3' is a model of more than text"),
        ("vision", SHAPES["gemma2"], "is no model of images and text"),
        ("text", {"hidden_size": 32}, "model.config has no model_type"),
        ("text", {"model_type": "gemma9"}, "model.config is no config of 'gemma9'"),
        ("text", {**SHAPES["gemma2"], "hidden_size": "wide"}, "is no config of 'gemma2': .*'hidden_size'"),
        ("text", {**SHAPES["gemma2"], "num_hiden_layers": 2}, r"num_hiden_layers: .* did you mean 'num_hidden_layers'"),
        (
            "vision",
            {**VISION_SHAPES["gemma3"], "text_config": {**SHAPES["gemma"], "vocab_size": 400}},
            "vocab_size 400 has no room for 400 tokens of the tokenizer and 3 that stand for images",
        ),
    ],
)
def test_a_shape_that_is_none_is_refused(
    prepared: PreparedData, kind: str, config: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        built("gemma2", prepared, {"model.kind": kind, "model.config": config})


def test_fields_that_a_config_converts_are_no_misspelt_ones(prepared: PreparedData) -> None:
    config = {**SHAPES["gemma3_text"], "sliding_window_pattern": 2, "rope_local_base_freq": 5000.0}
    model = built("gemma2", prepared, {"model.config": config}).model
    assert model.config.layer_types == ["sliding_attention", "full_attention"]


def test_a_field_of_the_config_that_differs_is_named_with_both_values() -> None:
    check_config({"hidden_size": 8, "vision": {"size": 1}}, {"hidden_size": 8, "vision": {"size": 1, "a": 2}}, "w")
    for expected, problem in (
        ({"hidden_size": 9}, r"model\.config\.hidden_size: the recipe expects 9, the weights at 'w' have 8"),
        ({"hiden_size": 8}, r"model\.config\.hiden_size: .* have no such field"),
        ({"vision": {"size": 2}}, r"model\.config\.vision\.size: the recipe expects 2, .* have 1"),
    ):
        with pytest.raises(InputError, match=problem):
            check_config(expected, {"hidden_size": 8, "vision": {"size": 1}}, "w")


def test_tokens_that_the_data_does_not_hold_need_no_embedding(prepared: PreparedData) -> None:
    largest = max(int(np.max(rows.ids_L)) for rows in (prepared.train, prepared.eval))
    built("gemma3_text", prepared, {"model.config": {**SHAPES["gemma3_text"], "vocab_size": largest + 1}})
    with pytest.raises(InputError, match=f"the tokenizer has 400 tokens, the model only {largest}"):
        built("gemma3_text", prepared, {"model.config": {**SHAPES["gemma3_text"], "vocab_size": largest}})


def test_tokens_of_an_image_see_each_other_where_their_type_says_so(prepared: PreparedData) -> None:
    model = built("gemma3", prepared, {"model.config": {**VISION_SHAPES["gemma3"], "mm_tokens_per_image": 4}}).model
    config = model.config
    marks = {config.image_token_index, config.boi_token_index, config.eoi_token_index}
    assert len(marks) == 3
    assert all(prepared.vocab_size <= mark < config.text_config.vocab_size for mark in marks)
    with torch.no_grad():  # it starts at zero, so that images say nothing
        model.model.multi_modal_projector.mm_input_projection_weight.normal_()
    ids_BT = some_ids(1, 12)
    ids_BT[0, 3:7] = config.image_token_index
    types_BT = (ids_BT == config.image_token_index).long()
    pixels = torch.randn(1, 3, 28, 28, requires_grad=True)
    inputs: dict[str, Any] = {"input_ids": ids_BT, "pixel_values": pixels, "use_cache": False}
    model.train()
    causal, seen = model(**inputs).logits, model(**inputs, token_type_ids=types_BT).logits
    assert torch.equal(causal[0, :3], seen[0, :3])
    assert not torch.allclose(causal[0, 3], seen[0, 3])  # its first token already sees the whole image
    seen.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
