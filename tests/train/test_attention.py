"""Which attention is taken, and that no other one is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, Gemma3ForCausalLM

from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.train.attention import Demands, check_attention, choose_attention
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.model import build_model
from tests.train.models import CPU, SHAPES, VISION_SHAPES, built, recipe_of, some_ids

CUDA = torch.device("cuda", 0)


def choose(
    monkeypatch: pytest.MonkeyPatch,
    wanted: str = "auto",
    device: torch.device = CUDA,
    *,
    flash: bool = False,
    triton: bool = True,
    precision: str = "bf16",
    model_class: Any = Gemma3ForCausalLM,
    **demands: Any,
) -> tuple[str, str]:
    monkeypatch.setattr("hpcgemma.train.attention.is_flash_attn_2_available", lambda: flash)
    monkeypatch.setattr("hpcgemma.train.attention.has_triton", lambda: triton)
    recipe = recipe_of("gemma2", {"model.attention": wanted, "training.precision": precision})
    of_gemma_3: dict[str, Any] = {"softcap": None, "head_size": 256, "dropout": 0.0, "has_images": False}
    return choose_attention(recipe, Demands(**{**of_gemma_3, **demands}), model_class, device)


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        ("sdpa", {}),
        ("sdpa", {"device": CPU}),
        ("flash_attention_2", {"flash": True}),
        ("sdpa", {"flash": True, "head_size": 512}),
        ("sdpa", {"flash": True, "precision": "fp32"}),
        ("sdpa", {"flash": True, "has_images": True}),
        ("flash_attention_2", {"flash": True, "softcap": 50.0}),
        ("flex_attention", {"softcap": 50.0}),
        ("eager", {"softcap": 50.0, "dropout": 0.1}),
        ("eager", {"softcap": 50.0, "triton": False}),
        ("eager", {"softcap": 50.0, "device": CPU}),
        ("eager", {"model_class": SimpleNamespace(__name__="Odd"), "flash": True}),
    ],
)
def test_automatic_attention_is_the_fastest_that_is_exact(
    monkeypatch: pytest.MonkeyPatch, expected: str, facts: dict[str, Any]
) -> None:
    assert choose(monkeypatch, **facts)[0] == expected


def test_the_reason_says_what_was_not_taken_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, softcap=50.0, dropout=0.1) == (
        "eager",
        "it applies the softcap of 50 on the attention scores; not flash_attention_2: the package flash-attn is not "
        "installed; not flex_attention: it has no dropout, and this model's attention_dropout is 0.1",
    )


@pytest.mark.parametrize(
    ("wanted", "problem", "facts"),
    [
        ("sdpa", "it cannot apply this model's softcap of 50", {"softcap": 50.0}),
        ("flash_attention_2", "there is no GPU for flash-attn", {"device": CPU}),
        ("flash_attention_2", "the package flash-attn is not installed", {}),
        ("flash_attention_2", "it takes heads of 256 dimensions at most", {"flash": True, "head_size": 512}),
        ("flash_attention_2", "it cannot let the tokens of an image see each", {"flash": True, "has_images": True}),
        ("flex_attention", "it has no backward pass without a GPU", {"device": CPU}),
        ("flex_attention", "does not support it", {"model_class": SimpleNamespace(__name__="Odd")}),
    ],
)
def test_attention_that_would_change_the_model_or_be_downloaded_is_refused(
    monkeypatch: pytest.MonkeyPatch, wanted: str, problem: str, facts: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=f"model.attention {wanted}: .*{problem}"):
        choose(monkeypatch, wanted, **facts)


def test_what_a_config_demands_is_read_from_its_text_and_its_largest_heads() -> None:
    def demands(shape: dict[str, Any]) -> Demands:
        return Demands.of(AutoConfig.for_model(**shape), has_images=False)

    assert demands({**SHAPES["gemma2"], "attention_dropout": 0.1}) == Demands(50.0, 16, 0.1, False)
    assert demands(SHAPES["qwen2"]) == Demands(None, 16, 0.0, False)
    assert demands(VISION_SHAPES["gemma3"]) == Demands(None, 16, 0.0, False)
    assert demands(SHAPES["gemma4_text"]) == Demands(None, 32, 0.0, False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_flex_attention_has_the_logits_and_gradients_of_eager(prepared: PreparedData) -> None:
    gradients = []
    for attention in ("eager", "flex_attention"):
        recipe = recipe_of("gemma2", {"model.attention": attention})
        model = build_model(recipe, prepared, CUDA).model.train()
        ids_BT = some_ids(2, 100).to(CUDA)
        logits = model(input_ids=ids_BT, use_cache=False).logits
        logits.square().mean().backward()
        gradients.append([logits, *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


def test_attention_that_transformers_took_instead_is_an_error(prepared: PreparedData) -> None:
    model = built("gemma3", prepared).model
    assert check_attention(model, "sdpa") == []
    model.model.vision_tower.config._attn_implementation = "eager"
    with pytest.raises(HpcGemmaError, match="SiglipVisionModel computes its attention with eager, and sdpa was chosen"):
        check_attention(model, "sdpa")


def test_a_part_that_does_not_support_what_was_chosen_is_eager_and_said_to_be(prepared: PreparedData) -> None:
    ear = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32}
    result = built("gemma4", prepared, {"model.config": {**VISION_SHAPES["gemma4"], "audio_config": ear}})
    config = result.model.config
    chosen = [each._attn_implementation for each in (config.text_config, config.vision_config, config.audio_config)]
    assert chosen == ["sdpa", "sdpa", "eager"]
    assert result.notes[1:] == ["attention: eager in Gemma4AudioModel, which does not support sdpa"]
