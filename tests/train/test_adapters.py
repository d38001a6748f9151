"""LoRA and DoRA: where adapters go, what they train, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcgemma.errors import InputError
from hpcgemma.train.adapters import describe_parameters
from hpcgemma.train.anatomy import bare_model, head_of, is_tied
from hpcgemma.train.data.prepared import PreparedData
from tests.train.models import VISION_SHAPES, built, some_ids

# peft 0.21 asks transformers for a name that is to go in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def trained_names(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("shape", list(VISION_SHAPES))
def test_a_vision_tower_gets_no_adapters(prepared: PreparedData, shape: str) -> None:
    model = built(shape, prepared, {"lora.rank": 4, "lora.modules_to_save": ["embed_tokens"]}).model
    names = trained_names(model)
    assert len([name for name in names if "lora_A" in name]) == 14  # 7 projections of 2 layers
    assert all(".language_model." in name for name in names)
    assert head_of(model).weight.requires_grad  # tied to the embeddings


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_one_of_two_tied_modules_trains_both_as_one(prepared: PreparedData, name: str) -> None:
    model = built("gemma2", prepared, {"lora.rank": 4, "lora.modules_to_save": [name]}).model
    assert is_tied(model)
    assert len([each for each in trained_names(model) if "modules_to_save" in each]) == 1
    assert head_of(model).weight.requires_grad


def test_a_tied_module_that_peft_would_untie_is_refused(prepared: PreparedData) -> None:
    changes = {"lora.target_modules": ["c_attn"], "lora.modules_to_save": ["wte"]}
    with pytest.raises(InputError, match=r"lora\.modules_to_save wte: peft unties it"):
        built("gpt2", prepared, changes)


def test_dora_trains_a_magnitude_per_row(prepared: PreparedData) -> None:
    model = built("gemma2", prepared, {"lora.rank": 4, "lora.dora": True}).model
    magnitudes = [name for name in trained_names(model) if "lora_magnitude_vector" in name]
    assert len(magnitudes) == 14
    model(input_ids=some_ids(), labels=some_ids()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("shape", "target", "problem"),
    [
        ("gemma2", "lm_head", "an adapter on lm_head is not supported, it is the output head, tied to the input"),
        ("gemma2", "embed_tokens", "an adapter on embed_tokens is not supported, it is the output head, tied to"),
        ("qwen2", "lm_head", "an adapter on lm_head is not supported, it is the output head$"),
        ("gemma2", "q_porj", "the model has no module q_porj"),
        ("gemma2", "self_attn", "the model has no module self_attn"),
        ("gemma3", "out_proj", "the model has no module out_proj"),  # only in the vision tower
    ],
)
def test_targets_that_cannot_have_an_adapter_are_refused(
    prepared: PreparedData, shape: str, target: str, problem: str
) -> None:
    with pytest.raises(InputError, match=f"lora.target_modules: {problem}"):
        built(shape, prepared, {"lora.target_modules": [target]})


def test_the_names_that_can_be_targets_are_listed(prepared: PreparedData) -> None:
    with pytest.raises(InputError) as error:
        built("gemma2", prepared, {"lora.modules_to_save": ["head"]})
    assert error.value.problem == "lora.modules_to_save: the model has no module head"
    assert error.value.hint == (
        "valid: down_proj, embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    )


def test_parameters_are_counted_once_and_adapters_apart(prepared: PreparedData) -> None:
    plain = built("gemma2", prepared).model
    total = sum(parameter.numel() for parameter in plain.parameters())
    table = plain.get_input_embeddings().weight.numel()
    assert describe_parameters(plain) == (
        f"trainable params: {total:,} || all params: {total:,} || trainable%: 100.0000"
    )
    changes = {"lora.rank": 4, "lora.modules_to_save": ["embed_tokens", "lm_head"], "training.precision": "bf16"}
    model = built("gemma2", prepared, changes).model
    adapters = 2 * 4 * (3 * (32 + 64) + 2 * (32 + 32) + 2 * (32 + 16))  # gate, up, down; q, o; k, v
    count, everything = adapters + table, total + adapters + table
    assert describe_parameters(model) == (
        f"trainable params: {count:,} = {adapters:,} in adapters + {table:,} in modules trained whole || "
        f"all params: {everything:,} || trainable%: {100 * count / everything:.4f}"
    )


def test_adapters_start_the_same_with_the_same_seed(prepared: PreparedData) -> None:
    first, second = (built("gemma2", prepared, {"lora.rank": 4}).model.state_dict() for _ in range(2))
    other = built("gemma2", prepared, {"lora.rank": 4, "training.seed": 1}).model.state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    name = next(name for name in first if "lora_A" in name)
    assert not torch.equal(first[name], other[name])


def test_the_bare_model_is_found_under_adapters(prepared: PreparedData) -> None:
    model = built("gemma2", prepared, {"lora.rank": 4}).model
    assert type(bare_model(model)).__name__ == "Gemma2ForCausalLM"
