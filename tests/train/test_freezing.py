"""What of a model is not trained, and that it is said what else that freezes."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from hpcgemma.errors import InputError
from hpcgemma.train.data.prepared import PreparedData
from tests.train.models import built


def frozen_names(model: nn.Module) -> set[str]:
    return {name for name, each in model.named_parameters() if not each.requires_grad}


@pytest.mark.parametrize(
    ("shape", "freeze", "names", "notes"),
    [
        (
            "gemma2",
            {"embeddings": True},
            {"model.embed_tokens.weight"},
            [
                "freeze.embeddings: the input embeddings are not trained, and the output head with them: they are one "
                "matrix in this model"
            ],
        ),
        (
            "gemma2",
            {"head": True},
            {"model.embed_tokens.weight"},
            [
                "freeze.head: the output head is not trained, and the input embeddings with it: they are one matrix in "
                "this model"
            ],
        ),
        (
            "qwen2",
            {"embeddings": True},
            {"model.embed_tokens.weight"},
            ["freeze.embeddings: the input embeddings are not trained"],
        ),
        ("qwen2", {"head": True}, {"lm_head.weight"}, ["freeze.head: the output head is not trained"]),
        (
            "gemma4_text",
            {"embeddings": True},
            {"model.embed_tokens.weight", "model.embed_tokens_per_layer.weight"},
            [
                "freeze.embeddings: the input embeddings are not trained, and the output head with them: they are one "
                "matrix in this model"
            ],
        ),
        (
            "gemma3",
            {"modules": ["multi_modal_projector"]},
            {
                "model.multi_modal_projector.mm_input_projection_weight",
                "model.multi_modal_projector.mm_soft_emb_norm.weight",
            },
            ["freeze.modules: multi_modal_projector is not trained (1,056 weights)"],
        ),
    ],
)
def test_what_is_frozen_and_what_that_freezes_too_is_said(
    prepared: PreparedData, shape: str, freeze: dict[str, Any], names: set[str], notes: list[str]
) -> None:
    result = built(shape, prepared, {"model.freeze": freeze})
    assert frozen_names(result.model) == names
    assert result.notes[1:] == notes


def test_the_first_layers_are_frozen(prepared: PreparedData) -> None:
    result = built("gemma3", prepared, {"model.freeze": {"layers": 1}})
    names = frozen_names(result.model)
    assert names == {n for n, _ in result.model.named_parameters() if n.startswith("model.language_model.layers.0.")}
    assert result.notes[1:] == ["freeze.layers: the first 1 of 2 decoder layers are not trained"]


@pytest.mark.parametrize(
    ("freeze", "problem", "hint"),
    [
        ({"layers": 3}, "model.freeze.layers 3: the model has 2 decoder layers", "--set model.freeze.layers=1"),
        ({"modules": ["vision"]}, "the model has no module 'vision'", "vision_tower"),
        ({"modules": ["model"]}, "leaves nothing to be trained", "--set lora.rank=16"),
    ],
)
def test_freezing_what_is_not_there_or_all_is_refused(
    prepared: PreparedData, freeze: dict[str, Any], problem: str, hint: str
) -> None:
    with pytest.raises(InputError, match=problem) as error:
        built("gemma3", prepared, {"model.freeze": freeze})
    assert hint in error.value.hint
