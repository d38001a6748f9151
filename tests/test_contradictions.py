"""Fields that contradict each other are refused with both names, the reason and the fix, in whole messages."""

from __future__ import annotations

import re
from typing import Any

import pytest

from hpcgemma.configfile import Section
from hpcgemma.recipes import Recipe, load_recipe, recipe_names
from hpcgemma.recipes.contradictions import Surroundings, cautions, contradictions
from hpcgemma.recipes.only_for import ONLY_FOR, switching


def around_of(recipe: Recipe, **given: Any) -> Surroundings:
    processes = {"nodes": recipe.resources.nodes, "gpus_per_node": recipe.resources.gpus_per_node}
    return Surroundings(**{**processes, "model_config": recipe.model.config, **given})


def recipe_of(name: str, settings: str) -> Recipe:
    """Return a recipe whose strategy is named: settings come after it and may say another."""
    named = ["strategy.name=ddp"] if load_recipe(name).strategy.name == "auto" else []
    return load_recipe(name, [*named, *settings.split()])


def found_in(name: str, settings: str, **given: Any) -> list[tuple[str, str]]:
    recipe = recipe_of(name, settings)
    return [(each.problem, each.hint) for each in contradictions(recipe, around_of(recipe, **given))]


TINY = "svg_captions_tiny"
NOT_DEEPSPEED = (
    "--set strategy.zero_stage=null --set strategy.reduce_bucket_size=null --set strategy.allgather_bucket_size=null"
)
# Recipe, settings -> problem, fix.
CASES: dict[tuple[str, str], tuple[str, str]] = {
    (TINY, "strategy.name=fsdp resources.gpus_per_node=1"): (
        "strategy.name fsdp shards over processes, and resources.nodes 1 x resources.gpus_per_node 1 is one process",
        "--set strategy.name=ddp, or --set resources.gpus_per_node=2",
    ),
    ("gemma3_27b_sft", "resources.nodes=1"): (
        "strategy.expected_world_size is 8, and resources.nodes 1 x resources.gpus_per_node 4 gives 4 processes: each "
        "would hold another part of the model than strategy.name fsdp was planned with",
        "--set strategy.expected_world_size=4 if it fits, or resources that make 8 processes",
    ),
    ("gemma3_27b_sft", "strategy.hybrid_shard=true resources.nodes=1 resources.gpus_per_node=8"): (
        "strategy.hybrid_shard shards within a node and copies between nodes, and resources.nodes 1 x "
        "resources.gpus_per_node 8 leaves nothing to copy",
        "--set strategy.hybrid_shard=false",
    ),
    ("gemma3_27b_sft", "strategy.hybrid_shard=true resources.nodes=8 resources.gpus_per_node=1"): (
        "strategy.hybrid_shard shards within a node and copies between nodes, and resources.nodes 8 x "
        "resources.gpus_per_node 1 leaves nothing to shard",
        "--set strategy.hybrid_shard=false",
    ),
    (TINY, "strategy.name=deepspeed"): (
        "strategy.name is deepspeed, and strategy.zero_stage does not say what it shards",
        "--set strategy.zero_stage=2  (1: optimizer, 2: and gradients, 3: and weights)",
    ),
    (TINY, "strategy.zero_stage=2"): (
        "strategy.zero_stage is only for strategy.name deepspeed, and it is ddp",
        "--set strategy.zero_stage=null, or --set strategy.name=deepspeed",
    ),
    ("gemma2_9b_lora", "strategy.name=fsdp"): (
        "strategy.zero_stage and strategy.reduce_bucket_size and strategy.allgather_bucket_size are only for "
        "strategy.name deepspeed, and it is fsdp",
        f"{NOT_DEEPSPEED}, or --set strategy.name=deepspeed",
    ),
    (TINY, "strategy.offload_optimizer=true"): (
        "strategy.offload_optimizer is only for strategy.name deepspeed, and it is ddp",
        "--set strategy.offload_optimizer=false, or --set strategy.name=deepspeed",
    ),
    (TINY, "strategy.offload_parameters=true"): (
        "strategy.offload_parameters is only for strategy.name fsdp and deepspeed, and it is ddp",
        "--set strategy.offload_parameters=false, or --set strategy.name=fsdp",
    ),
    (TINY, "strategy.hybrid_shard=true strategy.prefetch_layers=2"): (
        "strategy.hybrid_shard and strategy.prefetch_layers are only for strategy.name fsdp, and it is ddp",
        "--set strategy.hybrid_shard=false --set strategy.prefetch_layers=1, or --set strategy.name=fsdp",
    ),
    ("gemma2_9b_lora", "strategy.offload_parameters=true"): (
        "strategy.offload_parameters moves sharded weights, and strategy.zero_stage 2 shards none",
        "--set strategy.offload_parameters=false, or --set strategy.zero_stage=3",
    ),
    ("gemma2_9b_lora", "strategy.zero_stage=3 training.compile=false model.quantization.bits=4"): (
        "strategy.zero_stage 3 shards weights, and skips those that model.quantization keeps in 4 bits: each process "
        "would hold all of them",
        f"--set strategy.name=fsdp {NOT_DEEPSPEED}  (FSDP shards them)",
    ),
    ("gemma2_9b_lora", "strategy.zero_stage=3"): (
        "training.compile cannot follow strategy.zero_stage 3, which gathers weights in hooks around every module",
        f"--set training.compile=false, or --set strategy.name=fsdp {NOT_DEEPSPEED}",
    ),
    ("gemma3_27b_qlora", "training.compile=true"): (
        "training.compile is done anew for each layer that strategy.name fsdp gathers from the 4 bits of "
        "model.quantization, until torch gives it up",
        "--set training.compile=false, or --set strategy.name=ddp",
    ),
    ("gemma2_9b_lora", "optimizer.name=adamw_8bit"): (
        "optimizer.name adamw_8bit keeps its states in blocks of 256 elements, which strategy.name deepspeed would cut "
        "through",
        f"--set optimizer.name=adamw, or --set strategy.name=ddp {NOT_DEEPSPEED}",
    ),
    ("gemma3_27b_sft", "optimizer.name=adamw_8bit"): (
        "optimizer.name adamw_8bit keeps its states in blocks of 256 elements, which strategy.name fsdp would cut "
        "through",
        "--set optimizer.name=adamw, or --set strategy.name=ddp",
    ),
    ("gemma2_9b_lora", "training.trained_weights=bf16"): (
        "training.trained_weights is bf16, and strategy.name deepspeed steps on a copy in fp32 whatever it says",
        f"--set training.trained_weights=fp32, or --set strategy.name=fsdp {NOT_DEEPSPEED}",
    ),
    ("gemma3_270m_tpu", "training.precision=fp32"): (
        "strategy.name xla computes in bfloat16, and training.precision is fp32",
        "--set training.precision=bf16",
    ),
    ("gemma3_270m_tpu", "training.global_batch=1000"): (
        "training.global_batch 1000 is not a multiple of 128: under strategy.name xla a TPU pads it to one and "
        "computes the rest in vain",
        "--set training.global_batch=896  (the nearest that fit: 896 or 1024)",
    ),
    ("gemma3_270m_tpu", "training.global_batch=100"): (
        "training.global_batch 100 is not a multiple of 128: under strategy.name xla a TPU pads it to one and computes "
        "the rest in vain",
        "--set training.global_batch=128  (the nearest that fit: 128)",
    ),
    ("gemma3_270m_tpu", "model.quantization.bits=4"): (
        "model.quantization needs bitsandbytes, which has no kernels for strategy.name xla",
        "--set model.quantization=null",
    ),
    ("gemma3_270m_tpu", "optimizer.name=adamw_8bit"): (
        "optimizer.name adamw_8bit needs bitsandbytes, which has no kernels for strategy.name xla",
        "--set optimizer.name=adamw",
    ),
    ("gemma3_270m_tpu", "training.compile=true"): (
        "training.compile is torch's compiler, and strategy.name xla has its own",
        "--set training.compile=false",
    ),
    ("gemma3_270m_tpu", "data.packing=true"): (
        "data.packing is not supported by strategy.name xla, whose batches have one shape without it",
        "--set data.packing=false",
    ),
    ("gemma3_4b_cpt", "data.prompt_template=Say"): (
        "data.prompt_template makes a user turn, and rows of data.format text take none",
        "--set data.prompt_template=null",
    ),
    ("gemma3_4b_cpt", "data.learn=last"): (
        "data.learn last chooses among answers, and rows of data.format text have none",
        "--set data.learn=all",
    ),
    ("gemma3_4b_cpt", "evaluation.generation.rows=8"): (
        "evaluation.generation asks for answers, and rows of data.format text ask nothing",
        "--set evaluation.generation=null",
    ),
    ("gemma2_2b_qlora", "data.format=image_caption"): (
        "data.format image_caption shows images, and model.kind text sees none",
        "--set model.kind=vision",
    ),
    ("gemma3_270m_tpu", "training.liger_kernels=true"): (
        "training.liger_kernels is for GPUs, and strategy.name is xla",
        "--set training.liger_kernels=false",
    ),
    ("gemma3_270m_tpu", "model.attention=sdpa"): (
        "model.attention sdpa has no kernel under strategy.name xla, whose compiler fuses what eager attention does",
        "--set model.attention=auto",
    ),
    ("gemma3_270m_tpu", "monitors.rows=8"): (
        "monitors read attention scores a few at a time, and strategy.name xla would compile each read anew",
        "--set monitors=null, or measure on a GPU or a CPU",
    ),
    ("gemma3_270m_tpu", "evaluation.generation.rows=8"): (
        "evaluation.generation makes answers grow token by token, and strategy.name xla compiles each length anew",
        "--set evaluation.generation=null, or answer with final/ on a GPU or a CPU",
    ),
    ("gemma3_4b_cpt", "model.quantization.bits=4"): (
        "model.quantization keeps frozen weights in 4 bits, and without lora all of them would be trained",
        "--set lora.rank=16, or --set model.quantization=null",
    ),
    ("gemma2_9b_lora", "lora.target_modules=[q_proj,lm_head]"): (
        "lora.target_modules and lora.modules_to_save both name lm_head: adapted or trained whole, not both",
        "--set lora.target_modules=[q_proj]",
    ),
    ("gemma2_2b_qlora", "lora.target_modules=[q_proj,lm_head]"): (
        "lora.target_modules names lm_head, and this gemma2 ties embed_tokens and lm_head "
        "(model.config.tie_word_embeddings): an adapter on one would make them differ",
        "--set lora.target_modules=[q_proj] --set lora.modules_to_save=[embed_tokens, lm_head]",
    ),
    ("qwen2_5_14b_qlora", "lora.target_modules=[q_proj,embed_tokens] model.config.tie_word_embeddings=true"): (
        "lora.target_modules names embed_tokens, and this qwen2 ties embed_tokens and lm_head "
        "(model.config.tie_word_embeddings): an adapter on one would make them differ",
        "--set lora.target_modules=[q_proj] --set lora.modules_to_save=[embed_tokens, lm_head]",
    ),
    ("gemma2_9b_lora", "model.freeze.layers=3 model.freeze.head=true"): (
        "model.freeze.head and model.freeze.layers cannot be set beside lora: adapters freeze the whole model but "
        "lora.modules_to_save",
        "--set model.freeze.head=false --set model.freeze.layers=0",
    ),
    ("gemma3_27b_sft", "model.freeze.layers=63"): (
        "model.freeze.layers is 63, and the model has 62 (model.config.num_hidden_layers)",
        "--set model.freeze.layers=31",
    ),
    ("gemma3_27b_sft", "training.precision=fp16"): (
        "training.precision fp16 is refused: the activations of gemma3_text overflow in it (transformers#36822), "
        "sometimes as a loss of 0",
        "--set training.precision=bf16, or fp32 on older GPUs",
    ),
    ("qwen2_5_14b_qlora", "training.precision=fp16"): (
        "training.precision fp16 is refused: it needs loss scaling, which hpcgemma does not do",
        "--set training.precision=bf16, or fp32 on older GPUs",
    ),
    ("gemma3_4b_cpt", "training.precision=fp32"): (
        "training.trained_weights is bf16, and training.precision fp32 computes with what bf16 has rounded already",
        "--set training.precision=bf16, or --set training.trained_weights=fp32",
    ),
    ("gemma2_2b_qlora", "model.attention=sdpa"): (
        "model.attention sdpa cannot apply this gemma2's softcap of 50 (model.config.attn_logit_softcapping): it would "
        "train another model",
        "--set model.attention=auto",
    ),
    ("gemma2_2b_qlora", "model.attention=flash_attention_2 training.precision=fp32"): (
        "model.attention flash_attention_2 computes in bf16, and training.precision is fp32",
        "--set model.attention=auto, or --set training.precision=bf16",
    ),
    (TINY, "evaluation.every_steps=null evaluation.early_stopping.patience=3"): (
        "evaluation.early_stopping counts evaluations, and evaluation.every_steps null makes one, at the end",
        "--set evaluation.every_steps=50, or --set evaluation.early_stopping=null",
    ),
    (TINY, "data.train=rows.jsonl"): (
        "data.train and data.generator are both set",
        "--set data.generator=null to use the file",
    ),
    (TINY, "schedule.num_cycles=2"): (
        "schedule.num_cycles is only for schedule.name cosine_with_restarts, and it is cosine",
        "--set schedule.num_cycles=1, or --set schedule.name=cosine_with_restarts",
    ),
    (TINY, "schedule.decay=0.2"): (
        "schedule.decay is only for schedule.name wsd, and it is cosine",
        "--set schedule.decay=0.1, or --set schedule.name=wsd",
    ),
    ("gemma2_9b_lora", "optimizer.name=adafactor"): (
        "optimizer.betas is only for optimizer.name adamw and adamw_8bit, and it is adafactor",
        "--set optimizer.betas=[0.9,0.999], or --set optimizer.name=adamw",
    ),
    (TINY, "optimizer.clip_threshold=2.0"): (
        "optimizer.clip_threshold is only for optimizer.name adafactor, and it is adamw",
        "--set optimizer.clip_threshold=1.0, or --set optimizer.name=adafactor --set optimizer.betas=[0.9,0.999]",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case))
def test_a_contradiction_names_both_fields_and_the_fix(case: tuple[str, str]) -> None:
    assert found_in(*case) == [CASES[case]]


FIXED = [case for case in CASES if "gpus_per_node" not in case[1]]


@pytest.mark.parametrize("case", FIXED, ids=lambda case: "-".join(case))
def test_following_a_fix_leaves_no_contradiction(case: tuple[str, str]) -> None:
    name, settings = case
    first_fix = re.split(r", or |  \(| if | to use ", CASES[case][1])[0]
    fixes = re.findall(r"--set (\S+=(?:\[[^]]*\]|\S+))", first_fix)
    assert fixes
    recipe = load_recipe(name, [*recipe_settings(name, settings), *fixes])
    assert contradictions(recipe, around_of(recipe)) == []


def recipe_settings(name: str, settings: str) -> list[str]:
    named = ["strategy.name=ddp"] if load_recipe(name).strategy.name == "auto" else []
    return [*named, *settings.split()]


def test_all_contradictions_come_at_once() -> None:
    settings = "training.precision=fp16 model.quantization.bits=4 model.attention=flash_attention_2 optimizer.eps=1e-6"
    assert len(found_in("gemma3_27b_sft", settings)) == 3


@pytest.mark.parametrize("name", recipe_names())
def test_no_shipped_recipe_contradicts_itself(name: str) -> None:
    assert found_in(name, "") == []


def test_what_only_a_gpu_can_is_refused_where_the_device_is_a_cpu() -> None:
    settings = "training.liger_kernels=true model.attention=flash_attention_2"
    assert found_in("gemma3_4b_cpt", settings, device="cpu") == [
        (
            "training.liger_kernels needs a GPU, and the profile's device is cpu",
            "--set training.liger_kernels=false",
        ),
        (
            "model.attention flash_attention_2 needs a GPU, and the profile's device is cpu",
            "--set model.attention=auto",
        ),
    ]
    assert found_in("gemma3_4b_cpt", settings) == []


def test_xla_is_refused_where_the_profiles_device_is_a_gpu() -> None:
    assert found_in("gemma3_270m_tpu", "", device="cuda") == [
        (
            "strategy.name xla computes on a TPU, and the profile's device is cuda",
            "--set strategy.name=auto, or device: auto in the profile",
        )
    ]
    assert found_in("gemma3_270m_tpu", "", device="auto") == []


def test_the_models_own_config_tells_more_than_the_recipe() -> None:
    settings = "lora.target_modules=[lm_head] model.config={}"
    assert found_in("gemma2_2b_qlora", settings, model_config={}) != []  # merged, not replaced: --set adds fields
    untied = {"model_type": "gemma2", "tie_word_embeddings": False}
    assert found_in("gemma2_2b_qlora", settings, model_config=untied) == []


def cautions_of(name: str, settings: str, **given: Any) -> list[tuple[str, str]]:
    recipe = recipe_of(name, settings)
    return [(each.problem, each.hint) for each in cautions(recipe, around_of(recipe, **given))]


def test_another_number_of_processes_than_expected_is_a_caution_outside_fsdp() -> None:
    assert cautions_of("gemma3_4b_cpt", "resources.nodes=1 training.trained_weights=fp32") == [
        (
            "strategy.expected_world_size is 8, and there are 4 processes: the global batch stays as it is, speed and "
            "memory per process will be others",
            "--set strategy.expected_world_size=4 where that is meant",
        )
    ]


def test_freezing_one_of_two_tied_modules_says_that_it_freezes_the_other() -> None:
    assert cautions_of("gemma3_27b_sft", "") == [
        (
            "model.freeze.embeddings freezes the output head too: this gemma3_text ties them",
            "--set model.freeze.head=true says the same in words",
        )
    ]
    assert cautions_of(TINY, "model.freeze.head=true") == [
        (
            "model.freeze.head freezes the input embeddings too: this gemma2 ties them",
            "--set model.freeze.embeddings=true says the same in words",
        )
    ]
    assert cautions_of("gemma3_27b_sft", "model.freeze.head=true") == []
    assert cautions_of("gemma3_27b_sft", "model.config.tie_word_embeddings=false") == []


def test_small_updates_of_bf16_weights_are_a_caution() -> None:
    assert cautions_of("gemma3_4b_cpt", "") == [
        (
            "training.trained_weights bf16 loses updates smaller than 1/256 of their weight: at "
            "optimizer.learning_rate 2e-05 those of weights above 0.005",
            "--set training.trained_weights=fp32 where memory allows",
        )
    ]
    assert cautions_of("gemma3_4b_cpt", "optimizer.learning_rate=1e-3") == []


def test_a_monitor_of_softcaps_is_a_caution_where_a_model_has_none() -> None:
    problem = (
        "monitors.measure names softcap_saturation, and this gemma3_text caps neither attention scores nor logits: it "
        "is left out"
    )
    fix = "--set monitors.measure=[attention_entropy,sliding_window]"
    assert cautions_of("gemma3_27b_qlora", "monitors.rows=4") == [(problem, fix)]
    load_recipe("gemma3_27b_qlora", ["monitors.rows=4", fix.removeprefix("--set ")])
    alone = cautions_of("gemma3_27b_qlora", "monitors.measure=[softcap_saturation]")
    assert alone == [(problem, "--set monitors=null")]
    assert cautions_of("gemma2_9b_lora", "") == []


def test_the_table_of_fields_for_one_name_only_is_what_their_docs_say() -> None:
    written = {}
    for section, info in Recipe.model_fields.items():
        model: Any = info.annotation
        if not (isinstance(model, type) and issubclass(model, Section)):
            continue
        for field, field_info in model.model_fields.items():
            if "Only for" in (field_info.description or ""):
                written[f"{section}.{field}"] = " ".join(str(field_info.description).split()).partition("Only for ")[2]
    assert set(written) == {f"{section}.{field}" for section, fields in ONLY_FOR.items() for field in fields}
    for section, fields in ONLY_FOR.items():
        for field, owners in fields.items():
            assert all(owner in written[f"{section}.{field}"] for owner in owners)


def test_switching_a_name_sets_back_what_the_new_one_does_not_have() -> None:
    recipe = load_recipe("gemma2_9b_lora")
    assert switching(recipe, "strategy", "fsdp") == f"--set strategy.name=fsdp {NOT_DEEPSPEED}"
    assert switching(recipe, "schedule", "cosine") == "--set schedule.name=cosine --set schedule.num_cycles=1"
