"""Bytes per GPU follow the papers' formulas, and the counts behind them are peft's and bitsandbytes' own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from hpcgemma.memory import (
    GIB,
    count_parameters,
    optimizer_element_bytes,
    quantized_element_bytes,
    quantized_parameters,
    state_memory,
)
from hpcgemma.recipes import Recipe, load_recipe
from hpcgemma.recipes.types import OptimizerSpec, QuantizationSpec
from hpcgemma.shapes import ModelShape, shape_of

# peft 0.21 asks transformers for a name that is to go in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 96,
}
GEMMA2 = {"model_type": "gemma2", **TEXT}
GEMMA3_VISION = {
    "model_type": "gemma3",
    "text_config": TEXT,
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 56,
        "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
}
QWEN2 = {"model_type": "qwen2", **{name: value for name, value in TEXT.items() if name != "head_dim"}}
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def recipe_of(config: dict[str, Any], *settings: str, kind: str = "text") -> tuple[Recipe, ModelShape]:
    given = ["strategy.name=ddp", f"model.kind={kind}", *settings]
    recipe = load_recipe("svg_captions_tiny", given)
    shape = shape_of(config, recipe.model.kind)
    assert shape is not None
    return recipe, shape


def model_of(config: dict[str, Any]) -> Any:
    fields = {name: value for name, value in config.items() if name != "model_type"}
    model_class: Any = AutoModelForImageTextToText if config["model_type"] == "gemma3" else AutoModelForCausalLM
    return model_class.from_config(AutoConfig.for_model(config["model_type"], **fields))


@pytest.mark.parametrize(
    ("config", "lora"),
    [
        (GEMMA2, {"r": 4, "target_modules": SEVEN}),
        (GEMMA2, {"r": 4, "target_modules": ["q_proj", "down_proj"], "use_dora": True}),
        (GEMMA2, {"r": 8, "target_modules": SEVEN, "modules_to_save": ["embed_tokens", "lm_head"]}),
        (GEMMA2, {"r": 8, "target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]}),
        (GEMMA2, {"r": 8, "target_modules": ["v_proj"], "modules_to_save": ["gate_proj"]}),
        (QWEN2, {"r": 4, "target_modules": SEVEN, "modules_to_save": ["embed_tokens", "lm_head"]}),
        (QWEN2, {"r": 4, "target_modules": [*SEVEN, "lm_head"], "modules_to_save": ["k_proj"]}),
        (QWEN2, {"r": 4, "target_modules": ["lm_head", "up_proj"], "use_dora": True}),
        (GEMMA3_VISION, {"r": 4, "target_modules": SEVEN}),
        (GEMMA3_VISION, {"r": 4, "target_modules": ["fc1", "fc2", "q_proj"]}),
    ],
)
def test_trained_parameters_are_those_that_peft_trains(config: dict[str, Any], lora: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    saved = lora.get("modules_to_save", [])
    targets = [name for name in lora["target_modules"] if name not in saved]
    settings = [
        f"lora.rank={lora['r']}",
        f"lora.target_modules=[{', '.join(targets)}]",
        f"lora.modules_to_save=[{', '.join(saved)}]",
        f"lora.dora={str(lora.get('use_dora', False)).lower()}",
    ]
    kind = "vision" if config is GEMMA3_VISION else "text"
    recipe, shape = recipe_of(config, *settings, kind=kind)
    options = {**lora, "target_modules": targets, "ensure_weight_tying": bool(saved) and config is GEMMA2}
    if saved and not set(saved) & {"embed_tokens", "lm_head"}:
        options["ensure_weight_tying"] = False
    model = get_peft_model(model_of(config), LoraConfig(**options))
    theirs = sum(each.numel() for each in model.parameters() if each.requires_grad)
    count = count_parameters(recipe, shape)
    assert count.trained == theirs
    assert count.frozen == count.model == sum(each.numel() for each in model_of(config).parameters())


def test_gemma2_9b_lora_trains_216_million_in_adapters_and_917_in_embeddings() -> None:
    recipe = load_recipe("gemma2_9b_lora")
    shape = shape_of(recipe.model.config)
    assert shape is not None
    count = count_parameters(recipe, shape)
    assert (count.adapters, count.whole, count.model) == (216_072_192, 917_504_000, 9_241_705_984)


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ([], 0),
        (["model.freeze.embeddings=true"], 96 * 32),
        (["model.freeze.head=true"], 96 * 32),
        (["model.freeze.embeddings=true", "model.freeze.head=true"], 96 * 32),
        (["model.freeze.modules=[lm_head]"], 96 * 32),
        (["model.freeze.layers=1"], "layer"),
        (["model.freeze.layers=9"], "layers"),
    ],
)
def test_frozen_parameters_are_not_trained_and_tied_ones_are_frozen_once(settings: list[str], frozen: Any) -> None:
    recipe, shape = recipe_of(GEMMA2, *settings)
    model = model_of(GEMMA2).model
    layer = sum(each.numel() for each in model.layers[0].parameters())
    expected = {"layer": layer, "layers": 2 * layer}.get(frozen, frozen)
    count = count_parameters(recipe, shape)
    assert (count.frozen, count.trained) == (expected, count.model - expected)


def test_a_frozen_vision_tower_and_projector_are_counted() -> None:
    recipe, shape = recipe_of(
        GEMMA3_VISION, "model.freeze.modules=[vision_tower, multi_modal_projector]", kind="vision"
    )
    model = model_of(GEMMA3_VISION).model
    parts = (model.vision_tower, model.multi_modal_projector)
    assert count_parameters(recipe, shape).frozen == sum(each.numel() for part in parts for each in part.parameters())


def test_quantized_are_the_linear_layers_but_the_head() -> None:
    model = model_of(QWEN2).model
    theirs = sum(each.weight.numel() for each in model.modules() if isinstance(each, torch.nn.Linear))
    assert quantized_parameters(recipe_of(QWEN2)[1]) == theirs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("double_quantization", [False, True])
def test_a_weight_in_4_bits_takes_what_bitsandbytes_keeps_of_it(double_quantization: bool) -> None:
    from bitsandbytes.functional import quantize_4bit

    elements = 1024 * 1024
    packed, state = quantize_4bit(
        torch.randn(1024, 1024), blocksize=64, quant_type="nf4", compress_statistics=double_quantization
    )
    kept = [packed, state.absmax, *([state.state2.absmax] if double_quantization else [])]
    measured = sum(tensor.numel() * tensor.element_size() for tensor in kept) / elements
    spec = QuantizationSpec(double_quantization=double_quantization)
    assert quantized_element_bytes(spec) == pytest.approx(measured, rel=1e-4)


def test_quantizing_the_constants_too_saves_what_the_paper_says() -> None:
    single, double = (quantized_element_bytes(QuantizationSpec(double_quantization=each)) for each in (False, True))
    assert 8 * (single - double) == pytest.approx(0.373, abs=1e-3)  # bits; QLoRA, section 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_the_optimizers_states_take_what_the_optimizer_keeps(name: Any) -> None:
    import bitsandbytes.optim

    eight_bit: Any = vars(bitsandbytes.optim)["AdamW8bit"]
    parameter = torch.nn.Parameter(torch.zeros(1024, 1024))
    optimizer: Any = (torch.optim.AdamW if name == "adamw" else eight_bit)([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    tensors = [each for each in optimizer.state[parameter].values() if torch.is_tensor(each)]
    measured = sum(each.numel() * each.element_size() for each in tensors) / parameter.numel()
    assert optimizer_element_bytes(OptimizerSpec(name=name), 4) == pytest.approx(measured, rel=2e-3)


def test_adafactors_states_are_too_small_to_count() -> None:
    assert optimizer_element_bytes(OptimizerSpec(name="adafactor"), 4) == 0


@pytest.mark.parametrize(("stage", "gigabytes"), [(1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_divides_what_its_paper_says(stage: int, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5 B parameters, mixed-precision Adam, 64 processes."""
    recipe, shape = recipe_of(
        GEMMA2, "strategy.name=deepspeed", f"strategy.zero_stage={stage}", "training.precision=bf16"
    )
    memory = state_memory(recipe, shape, strategy="deepspeed", nodes=8, gpus_per_node=8)
    kept = memory.total_bytes - memory.gathered_bytes
    each = kept / count_parameters(recipe, shape).model
    assert each * 7.5 == pytest.approx(gigabytes, abs=0.1)


FULL = "lora=null"
LORA = "lora.rank=4"
QLORA = "model.quantization.bits=4"


def per_parameter(*settings: str, strategy: Any, nodes: int = 1, gpus_per_node: int = 4) -> Iterator[float]:
    """Yield the bytes for each parameter of weights, gradients and optimizer states, on the GPU and on the host."""
    recipe, shape = recipe_of(GEMMA2, *settings)
    memory = state_memory(recipe, shape, strategy=strategy, nodes=nodes, gpus_per_node=gpus_per_node)
    model = count_parameters(recipe, shape).model
    for size in (memory.weights_bytes, memory.gradients_bytes, memory.optimizer_bytes, memory.host_bytes):
        yield round(size / model, 3)


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        # fp32 weights, gradients and two moments on every process.
        (["training.precision=bf16"], {"strategy": "ddp"}, [4, 4, 8, 0]),
        (["training.precision=fp32"], {"strategy": "ddp"}, [4, 4, 8, 0]),
        (["training.precision=bf16", "training.trained_weights=bf16"], {"strategy": "ddp"}, [2, 2, 4, 0]),
        (["optimizer.name=adafactor"], {"strategy": "ddp"}, [4, 4, 0, 0]),
        (["optimizer.name=adamw_8bit"], {"strategy": "xla"}, [4, 4, 2.031, 0]),
        # A part of each on every process; in hybrid sharding a part of a node's.
        ([], {"strategy": "fsdp"}, [1, 1, 2, 0]),
        ([], {"strategy": "fsdp", "nodes": 2}, [0.5, 0.5, 1, 0]),
        (["strategy.hybrid_shard=true"], {"strategy": "fsdp", "nodes": 2}, [1, 1, 2, 0]),
        (["strategy.offload_parameters=true"], {"strategy": "fsdp"}, [0, 0, 0, 4]),
        # ZeRO holds what computes, and an fp32 copy beside the moments.
        (["strategy.zero_stage=1", "training.precision=fp32"], {"strategy": "deepspeed"}, [4, 4, 3, 0]),
        (["strategy.zero_stage=2", "training.precision=bf16"], {"strategy": "deepspeed"}, [2, 0.5, 3, 0]),
        (
            ["strategy.zero_stage=2", "training.precision=bf16", "strategy.offload_optimizer=true"],
            {"strategy": "deepspeed"},
            [2, 0, 0, 3.5],
        ),
        (
            [
                "strategy.zero_stage=3",
                "training.precision=bf16",
                "strategy.offload_optimizer=true",
                "strategy.offload_parameters=true",
            ],
            {"strategy": "deepspeed"},
            [0, 0, 0, 4],
        ),
    ],
)
def test_each_strategy_keeps_its_bytes_for_each_parameter(
    settings: list[str], given: dict[str, Any], expected: list[float]
) -> None:
    assert list(per_parameter(*settings, **given)) == expected


def test_frozen_weights_are_held_in_what_computes_and_have_no_gradients() -> None:
    for precision, width in (("bf16", 2), ("fp32", 4)):
        recipe, shape = recipe_of(GEMMA2, "lora.rank=4", f"training.precision={precision}")
        count = count_parameters(recipe, shape)
        memory = state_memory(recipe, shape, strategy="ddp", nodes=1, gpus_per_node=2)
        assert memory.weights_bytes == width * count.model + 4 * count.adapters
        assert (memory.gradients_bytes, memory.optimizer_bytes) == (4 * count.adapters, 8 * count.adapters)


def test_fsdp_gathers_a_layer_those_prefetched_and_what_belongs_to_none() -> None:
    model = model_of(GEMMA2).model
    layer = sum(each.numel() for each in model.layers[0].parameters())
    outside = sum(each.numel() for each in model.parameters()) - 2 * layer
    for settings, layers in (
        ([], 2),
        (["strategy.prefetch_layers=0"], 1),
        (["strategy.reshard_after_forward=false"], 2),
    ):
        recipe, shape = recipe_of(GEMMA2, "training.precision=bf16", *settings)
        memory = state_memory(recipe, shape, strategy="fsdp", nodes=1, gpus_per_node=4)
        assert memory.gathered_bytes == 2 * (outside + layers * layer)


def test_4_bit_weights_are_sharded_by_fsdp_and_whole_under_ddp() -> None:
    """Dettmers et al. 2023, section 2: frozen weights in 4 bits, adapters and the rest in 16."""
    recipe = load_recipe("gemma3_27b_qlora")
    shape = shape_of(recipe.model.config)
    assert shape is not None
    whole = state_memory(recipe, shape, strategy="ddp", nodes=1, gpus_per_node=3)
    parts = state_memory(recipe, shape, strategy="fsdp", nodes=1, gpus_per_node=3)
    assert round(whole.total_bytes / GIB, 1) == 16.6
    assert round(parts.total_bytes / GIB, 1) == 8.6
    assert parts.weights_bytes == pytest.approx(whole.weights_bytes / 3)


def test_s3s_model_takes_31_gigabytes_of_each_gpu() -> None:
    recipe = load_recipe("gemma3_4b_cpt")
    shape = shape_of(recipe.model.config)
    assert shape is not None
    memory = state_memory(recipe, shape, strategy="ddp", nodes=2, gpus_per_node=4)
    assert round(memory.total_bytes / 1e9, 1) == 31.0
