"""Each strategy is chosen for a reason that is said in a sentence; whole sentences are compared."""

from __future__ import annotations

from typing import Any

import pytest

from hpcgemma.plan import Plan, make_plan
from hpcgemma.profiles import load_profile
from hpcgemma.recipes import load_recipe
from hpcgemma.shapes import shape_of
from hpcgemma.strategy import Choice, Processes, choose_strategy, with_strategy

FITS = (
    "so every GPU holds all of it and only gradients travel; ZeRO or FSDP would add communication and save memory that "
    "is not needed"
)
AUTO = "strategy.name=auto"


def choice_of(recipe_name: str, *settings: str, known: bool = True, **given: Any) -> Choice:
    recipe = load_recipe(recipe_name, settings)
    shape = shape_of(recipe.model.config, recipe.model.kind) if known else None
    processes: dict[str, Any] = {"nodes": 1, "per_node": 8, "memory_gib": 80.0, **given}
    return choose_strategy(recipe, shape, Processes(**processes))


def plan_of(profile: str, recipe: str, *settings: str) -> Plan:
    return make_plan(
        load_profile(profile), load_recipe(recipe, settings), run_name="r", run_id="0123456789ab", account="A"
    )


def test_ddp_where_a_gpu_holds_all_of_it() -> None:
    expected = (
        "gemma-3-4b-pt (3.88 B parameters) with its gradients and AdamW states takes 28.9 GiB of a GPU's 80 GiB, "
        + FITS
    )
    assert choice_of("gemma3_4b_cpt", AUTO) == Choice("ddp", expected)
    assert choice_of("gemma3_4b_cpt") == Choice("ddp", expected), "ddp that is asked for has the same reason"


def test_fsdp_where_it_does_not_fit_beside_the_activations() -> None:
    assert choice_of("gemma3_27b_sft", AUTO) == Choice(
        "fsdp",
        "gemma-3-27b-it (27.01 B parameters) with its gradients and Adafactor states takes 193 GiB, and a GPU of 80 "
        "GiB needs room for activations too, so weights, gradients and optimizer states are sharded: 28.3 GiB on each "
        "of 8 GPUs of 80 GiB",
    )


def test_fsdp_that_is_tight_too_says_so() -> None:
    assert choice_of("gemma3_27b_sft", AUTO, memory_gib=24.0).reason.endswith(
        "28.3 GiB on each of 8 GPUs of 24 GiB; that is much still, and more of them would help"
    )


def test_4_bits_that_fit_are_held_by_each_gpu_and_others_are_sharded() -> None:
    three: dict[str, Any] = {"per_node": 3, "memory_gib": 24.0}
    assert choice_of("gemma2_2b_qlora", AUTO, **three).name == "ddp"
    assert choice_of("qwen2_5_14b_qlora", **three).name == "ddp"
    assert choice_of("gemma3_27b_qlora", AUTO, **three) == Choice(
        "fsdp",
        "gemma-3-27b-it (27.01 B parameters) in 4 bits with adapters, their gradients and AdamW states takes 16.6 GiB, "
        "and a GPU of 24 GiB needs room for activations too, so weights, gradients and optimizer states are sharded: "
        "8.6 GiB on each of 3 GPUs of 24 GiB",
    )


def test_one_process_has_nothing_to_share() -> None:
    assert choice_of("gemma3_27b_sft", AUTO, per_node=1) == Choice("ddp", "there is one process, and nothing to share")


def test_where_a_gpus_memory_is_not_known_what_is_small_fits_and_what_is_large_is_sharded() -> None:
    assert choice_of("gemma3_270m_tpu", AUTO, memory_gib=None) == Choice(
        "ddp",
        "gemma-3-270m-it (268.1 M parameters) with adapters, their gradients and AdamW states takes 0.5 GiB, which any "
        "GPU has, " + FITS,
    )
    assert choice_of("gemma3_4b_cpt", AUTO, memory_gib=None) == Choice(
        "fsdp",
        "gemma-3-4b-pt (3.88 B parameters) with its gradients and AdamW states takes 28.9 GiB, and how much memory a "
        "GPU has is not known, so weights, gradients and optimizer states are sharded: 5.2 GiB on each of 8 GPUs",
    )


def test_where_the_models_size_is_not_known_the_sentence_says_so() -> None:
    assert choice_of("gemma3_4b_cpt", AUTO, known=False) == Choice(
        "fsdp", "the size of google/gemma-3-4b-pt is not known here, and sharded over 8 processes it needs least"
    )


def test_processes_without_gpus_are_called_so() -> None:
    small = choice_of("svg_captions_tiny", per_node=2, memory_gib=4.0, on_gpus=False)
    assert small.name == "ddp"
    assert " of a process's 4 GiB, so every process holds all of it" in small.reason
    large = choice_of("gemma3_27b_sft", AUTO, per_node=2, memory_gib=4.0, on_gpus=False)
    assert large.reason.endswith("on each of 2 processes of 4 GiB; that is much still, and more of them would help")


def test_a_field_that_only_fsdp_has_chooses_it() -> None:
    assert choice_of("svg_captions_tiny", "strategy.hybrid_shard=true") == Choice(
        "fsdp", "strategy.hybrid_shard is set, which ddp has not"
    )


def test_states_that_cannot_be_sharded_choose_ddp() -> None:
    settings = ["lora=null", "model.quantization=null", "optimizer.name=adamw_8bit", AUTO]
    assert choice_of("gemma3_27b_qlora", *settings) == Choice(
        "ddp", "the states of 8-bit AdamW cannot be sharded, so every GPU holds all of them"
    )


@pytest.mark.parametrize("name", ["deepspeed", "xla", "fsdp"])
def test_what_the_recipe_asks_for_stays(name: str) -> None:
    choice = choice_of("gemma3_270m_tpu", f"strategy.name={name}", "strategy.zero_stage=1", per_node=2)
    assert choice.name == name
    assert choice.reason.startswith("the recipe asks for it; gemma-3-270m-it (268.1 M parameters) with adapters, ")
    assert choice_of("gemma3_270m_tpu", f"strategy.name={name}", known=False) == Choice(
        choice.name, "the recipe asks for it"
    )


def test_deepspeed_and_xla_are_never_chosen() -> None:
    for memory_gib in (1.0, 24.0, 640.0, None):
        for per_node in (1, 2, 8):
            assert choice_of("gemma3_27b_sft", AUTO, memory_gib=memory_gib, per_node=per_node).name in ("ddp", "fsdp")


def test_the_plan_knows_the_gpus_of_its_profile_and_the_share_of_a_process_without_one() -> None:
    assert plan_of("leonardo", "gemma3_4b_cpt").strategy_reason.startswith(
        "gemma-3-4b-pt (3.88 B parameters) with its gradients and AdamW states takes 28.9 GiB of a GPU's 63.4 GiB, "
    )
    assert "which any machine has" in plan_of("local", "svg_captions_tiny").strategy_reason
    on_cpu = plan_of("tests/profiles/leonardo_test.yaml", "svg_captions_tiny")
    assert (on_cpu.strategy, "of a process's 0.977 GiB" in on_cpu.strategy_reason) == ("ddp", True)


def test_the_recipe_of_a_run_names_its_strategy() -> None:
    recipe = load_recipe("svg_captions_tiny")
    assert recipe.strategy.name == "auto"
    plan = plan_of("local", "svg_captions_tiny")
    resolved = with_strategy(recipe, plan.strategy)
    assert resolved.strategy.name == "ddp"
    assert resolved.model_copy(update={"strategy": recipe.strategy}) == recipe
    assert Plan.from_mapping(plan.as_mapping()) == plan
