"""The parts of a model, found with adapters and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from hpcgemma.errors import InputError
from hpcgemma.train.anatomy import decoder_layers, decoder_of, head_of, is_tied
from hpcgemma.train.data.prepared import PreparedData
from tests.train.models import SHAPES, VISION_SHAPES, built, some_ids

# peft 0.21 asks transformers for a name that is to go in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TARGETS = {"phi3": ["qkv_proj", "down_proj"], "gpt2": ["c_attn"]}
EMBEDDINGS = {"gpt2": "wte"}


def lora(shape: str, *saved: str) -> dict[str, Any]:
    changes: dict[str, Any] = {"lora.rank": 4, "lora.modules_to_save": list(saved)}
    if shape in TARGETS:
        changes["lora.target_modules"] = TARGETS[shape]
    return changes


@pytest.mark.parametrize("kind", ["bare", "adapters", "adapters and embeddings"])
@pytest.mark.parametrize("shape", [*SHAPES, *VISION_SHAPES])
def test_decoder_and_head_give_the_models_own_logits(prepared: PreparedData, shape: str, kind: str) -> None:
    saved = [EMBEDDINGS.get(shape, "embed_tokens"), "lm_head"] if kind == "adapters and embeddings" else []
    model: Any = built(shape, prepared, None if kind == "bare" else lora(shape, *saved)).model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # a trained copy must differ from the weight that it replaces
                parameter.add_(0.1 * torch.randn(parameter.shape))
        model.train()
        decoder: Any = decoder_of(model)
        torch.manual_seed(0)
        expected = model(input_ids=some_ids(), use_cache=False).logits
        torch.manual_seed(0)
        hidden = decoder(input_ids=some_ids(), use_cache=False).last_hidden_state
    head = head_of(model)
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias) * head.logit_scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
    if saved:
        assert head.weight.requires_grad
        assert is_tied(model) == is_tied(built(shape, prepared).model)


def test_a_cap_in_the_config_that_the_model_does_not_apply_is_no_cap(prepared: PreparedData) -> None:
    shape = {**VISION_SHAPES["gemma3"], "text_config": {**SHAPES["gemma3_text"], "final_logit_softcapping": 30.0}}
    assert head_of(built("gemma3", prepared, {"model.config": shape}).model).softcap is None
    assert head_of(built("gemma3_text", prepared, {"model.config": shape["text_config"]}).model).softcap == 30.0


def test_adapters_on_the_head_are_refused_with_what_to_do(prepared: PreparedData) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(built("qwen2", prepared).model, LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(InputError, match="adapters on it are not supported") as error:
        head_of(model)
    assert "lora.modules_to_save" in error.value.hint


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("gemma2", ["Gemma2DecoderLayer"] * 2),
        ("gpt2", ["GPT2Block"] * 2),
        ("gemma3", ["SiglipEncoderLayer"] + ["Gemma3DecoderLayer"] * 2),
    ],
)
def test_layers_are_found_in_the_order_in_which_they_compute(
    prepared: PreparedData, shape: str, expected: list[str]
) -> None:
    for changes in ({}, lora(shape)):
        model = built(shape, prepared, changes).model
        assert [type(layer).__name__ for layer in decoder_layers(model, None)] == expected


def test_layers_are_found_by_their_class_also_under_checkpointing(prepared: PreparedData) -> None:
    model = built("gemma3", prepared, lora("gemma3")).model
    plain = decoder_layers(model, "Gemma3DecoderLayer")
    assert len(plain) == 2
    chosen = set(plain)
    apply_activation_checkpointing(model, check_fn=lambda module: module in chosen)
    wrapped = decoder_layers(model, "Gemma3DecoderLayer")
    assert [type(each).__name__ for each in wrapped] == ["CheckpointWrapper"] * 2
    assert wrapped == decoder_layers(model, None)[1:]


def test_a_class_that_is_not_there_is_refused_with_those_that_repeat(prepared: PreparedData) -> None:
    with pytest.raises(InputError, match="has no module of class 'GemmaBlock'") as error:
        decoder_layers(built("gemma2", prepared).model, "GemmaBlock")
    assert "valid: Gemma2DecoderLayer (2)" in error.value.hint
