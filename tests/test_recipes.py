"""The shipped recipes: what each holds of its system, and how its tiny twin differs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcgemma import assets
from hpcgemma.cli.submit import submit
from hpcgemma.hub import model_config
from hpcgemma.memory import GIB, count_parameters, state_memory
from hpcgemma.plan import make_plan
from hpcgemma.profiles import load_profile
from hpcgemma.recipes import Recipe, load_recipe, recipe_names
from hpcgemma.recipes.batch import accumulation_steps
from hpcgemma.shapes import shape_of
from hpcgemma.strategy import Processes, choose_strategy

BIG = [
    "gemma2_2b_qlora",
    "gemma2_9b_lora",
    "gemma3_270m_tpu",
    "gemma3_27b_qlora",
    "gemma3_27b_sft",
    "gemma3_4b_cpt",
    "gemma3_4b_vlm",
    "qwen2_5_14b_qlora",
]
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NF4 = {"bits": 4, "type": "nf4", "double_quantization": True}
# What a twin may say otherwise: the model's size, the data, how long, on what; and for whom it was meant.
OF_A_TWIN = re.compile(
    r"name|description|model\.path|model\.config\..*|tokenizer\.train_vocab_size|resources\..*"
    r"|data\.(train|generator|format|max_length|num_workers)(\..*)?"
    r"|training\.(max_steps|global_batch|micro_batch|eval_micro_batch|log_every_steps|compile)"
    r"|evaluation\.(every_steps|generation\..*)|checkpoint\.(every_steps|keep)|strategy\.expected_world_size"
)
ALSO = {
    "gemma3_270m_tpu": {"strategy.name"},
    "gemma3_27b_sft": {"data.prompt_template"},
    "gemma3_4b_cpt": {"data.packing", "data.too_long"},
}
"""A laptop has no TPU; on another device the strategy is that device's. Drawings are no translations or documents."""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def header(name: str) -> dict[str, str]:
    lines = assets.find("recipe", name).read_text().splitlines()
    comments = [line.removeprefix("# ") for line in lines[: lines.index(next(x for x in lines if x[0] != "#"))]]
    return {key: value for key, _, value in (line.partition(":") for line in comments) if value}


def test_the_shipped_recipes_are_eight_each_with_a_tiny_twin_and_the_demo() -> None:
    assert recipe_names() == sorted([*BIG, *(f"{name}_tiny" for name in BIG), "svg_captions_tiny"])


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_says_how_to_start_it_what_it_needs_and_one_override(name: str) -> None:
    said = header(name)
    assert {"Start", "Needs", "Override"} <= set(said)
    words = said["Start"].split()
    assert words[:2] == ["hpcgemma", "submit"]
    assert words[words.index("--recipe") + 1] == name
    options = {opt for parameter in submit.params for opt in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    settings = re.findall(r"--set (\S+)", said["Override"])
    assert settings
    load_recipe(name, settings)


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_can_be_planned_where_its_header_starts_it(name: str) -> None:
    words = header(name)["Start"].split()
    profile, recipe = load_profile(words[words.index("--profile") + 1]), load_recipe(name)
    plan = make_plan(profile, recipe, run_name="r", run_id="0", account="A", model_config=model_config(recipe))
    assert plan.strategy_reason
    assert plan.strategy == recipe.strategy.name or recipe.strategy.name == "auto"


@pytest.mark.parametrize("name", BIG)
def test_a_tiny_twin_differs_only_in_size_data_and_steps(name: str) -> None:
    big, twin = (dict(leaves(load_recipe(each).model_dump())) for each in (name, f"{name}_tiny"))
    other = {path for path in big.keys() | twin.keys() if big.get(path, ...) != twin.get(path, ...)}
    beyond = {path for path in other if not OF_A_TWIN.fullmatch(path)}
    assert beyond == ALSO.get(name, set())
    assert twin["model.path"] is None


@pytest.mark.parametrize("name", BIG)
def test_no_twin_keeps_a_large_size_of_its_model(name: str) -> None:
    twin = load_recipe(f"{name}_tiny").model.config
    numbers = {path: value for path, value in leaves(twin) if isinstance(value, int)}
    assert {path: value for path, value in numbers.items() if value > 520} == {}


def test_gemma2_9b_lora_holds_every_hyperparameter_of_its_system() -> None:
    recipe = load_recipe("gemma2_9b_lora")
    assert recipe.lora is not None
    assert recipe.lora.model_dump() == {
        "rank": 64,
        "alpha": 128,
        "dropout": 0.1,
        "target_modules": SEVEN,
        "dora": False,
        "modules_to_save": ["embed_tokens", "lm_head"],
    }
    assert recipe.optimizer.model_dump(exclude={"clip_threshold", "decay_exponent"}) == {
        "name": "adamw",
        "learning_rate": 1e-4,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.01,
        "fused": True,
    }
    assert (recipe.schedule.name, recipe.schedule.warmup) == ("cosine_with_restarts", 0.05)
    training = recipe.training
    assert (training.epochs, training.micro_batch, training.eval_micro_batch) == (2, 1, 2)
    assert accumulation_of(recipe) == 16
    assert (training.max_grad_norm, training.precision, training.log_every_steps) == (0.5, "bf16", 1)
    assert training.activation_checkpointing
    assert training.compile
    assert training.tf32
    assert training.empty_cache_every_steps
    assert training.gpu_memory_fraction
    assert (recipe.evaluation.every_steps, recipe.checkpoint.every_steps) == (10, 10)
    assert recipe.evaluation.best_at_end
    assert recipe.evaluation.early_stopping is not None
    assert recipe.evaluation.early_stopping.model_dump() == {"patience": 10, "threshold": 0.0005}
    assert recipe.monitors is not None
    assert recipe.monitors.measure == ["attention_entropy", "softcap_saturation", "sliding_window"]
    assert recipe.monitors.every_steps == recipe.evaluation.every_steps
    assert (recipe.data.format, recipe.data.max_length) == ("svg_caption", 8192)
    assert (recipe.data.num_workers, recipe.data.pin_memory) == (2, True)
    strategy = recipe.strategy
    assert (strategy.name, strategy.zero_stage, strategy.offload_optimizer) == ("deepspeed", 2, False)
    assert strategy.reduce_bucket_size
    assert strategy.allgather_bucket_size
    assert (recipe.resources.nodes, recipe.resources.gpus_per_node) == (1, 2)
    shape = recipe.model.config
    assert (shape["num_hidden_layers"], shape["hidden_size"], shape["intermediate_size"]) == (42, 3584, 14336)
    assert (shape["num_attention_heads"], shape["num_key_value_heads"], shape["vocab_size"]) == (16, 8, 256000)
    assert (shape["sliding_window"], shape["max_position_embeddings"]) == (4096, 8192)
    assert (shape["attn_logit_softcapping"], shape["final_logit_softcapping"]) == (50.0, 30.0)


def accumulation_of(recipe: Recipe) -> int:
    world_size = recipe.resources.nodes * recipe.resources.gpus_per_node
    training = recipe.training
    return accumulation_steps(
        global_batch=training.global_batch, micro_batch=training.micro_batch, world_size=world_size
    )


def test_gemma3_27b_sft_holds_every_hyperparameter_of_its_system() -> None:
    recipe = load_recipe("gemma3_27b_sft")
    assert recipe.lora is None
    assert (recipe.optimizer.name, recipe.optimizer.learning_rate) == ("adafactor", 1e-4)
    assert recipe.model.freeze.model_dump() == {"embeddings": True, "head": False, "layers": 0, "modules": []}
    assert (recipe.model.attention, recipe.model.quantization) == ("auto", None)
    assert (recipe.training.global_batch, recipe.data.max_length) == (16, 1024)
    assert recipe.training.activation_checkpointing
    strategy = recipe.strategy
    assert (strategy.name, strategy.expected_world_size, strategy.layer_class) == ("fsdp", 8, None)
    assert (strategy.reshard_after_forward, strategy.prefetch_layers) == (True, 1)
    assert recipe.resources.nodes * recipe.resources.gpus_per_node == 8


def test_gemma3_4b_cpt_holds_every_hyperparameter_of_its_system() -> None:
    recipe = load_recipe("gemma3_4b_cpt")
    training = recipe.training
    assert recipe.strategy.name == "ddp"
    assert recipe.resources.nodes * recipe.resources.gpus_per_node == 8
    assert (recipe.optimizer.learning_rate, recipe.optimizer.weight_decay) == (2e-5, 0.01)
    assert (recipe.schedule.name, recipe.schedule.warmup) == ("cosine", 0.05)
    assert (training.epochs, training.micro_batch, accumulation_of(recipe)) == (8, 8, 1)
    assert training.global_batch * recipe.data.max_length == 524_288
    assert (training.max_grad_norm, training.precision, training.trained_weights) == (1.0, "bf16", "bf16")
    assert (training.compile, training.tf32, training.activation_checkpointing) == (True, True, True)
    assert recipe.data.num_workers == 8
    assert (recipe.evaluation.every_steps, recipe.checkpoint.every_steps, recipe.checkpoint.keep_best) == (50, 50, 5)
    assert recipe.evaluation.best_at_end


@pytest.mark.parametrize("name", ["gemma3_27b_qlora", "gemma2_2b_qlora", "qwen2_5_14b_qlora"])
def test_the_small_servers_recipes_quantize_for_three_cards(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.model.quantization is not None
    assert recipe.model.quantization.model_dump() == NF4
    assert recipe.lora is not None
    assert recipe.lora.target_modules == SEVEN
    assert (recipe.resources.nodes, recipe.resources.gpus_per_node) == (1, 3)
    assert recipe.training.activation_checkpointing
    assert accumulation_of(recipe) > 1
    assert recipe.strategy.name == {"gemma3_27b_qlora": "fsdp", "gemma2_2b_qlora": "ddp"}.get(name, "auto")


def test_gemma3_4b_vlm_trains_a_vision_model() -> None:
    recipe = load_recipe("gemma3_4b_vlm")
    assert (recipe.model.kind, recipe.model.config["model_type"]) == ("vision", "gemma3")
    assert recipe.resources.gpus_per_node == 3


def test_gemma3_270m_tpu_holds_every_hyperparameter_of_its_system() -> None:
    recipe = load_recipe("gemma3_270m_tpu")
    assert recipe.lora is not None
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.target_modules) == (8, 16, SEVEN)
    assert (recipe.data.format, recipe.training.precision, recipe.strategy.name) == ("messages", "bf16", "xla")
    assert (recipe.optimizer.learning_rate, recipe.schedule.name) == (2e-5, "cosine")
    assert (recipe.training.log_every_steps, recipe.evaluation.every_steps) == (50, 200)
    assert recipe.training.micro_batch % 128 == 0
    assert recipe.training.global_batch == recipe.training.micro_batch * 8 * accumulation_of(recipe)


@pytest.mark.parametrize("name", [*BIG, "svg_captions_tiny"])
def test_each_recipe_is_documented_with_what_it_takes(name: str) -> None:
    text = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
    assert f"| `{name}` |" in text
    if name == "svg_captions_tiny":
        return
    assert header(name)["Start"].strip() in text.splitlines()
    recipe = load_recipe(name)
    shape = shape_of(recipe.model.config, recipe.model.kind)
    assert shape is not None
    nodes, per_node = recipe.resources.nodes, recipe.resources.gpus_per_node
    strategy = choose_strategy(recipe, shape, Processes(nodes=nodes, per_node=per_node, memory_gib=24.0)).name
    memory = state_memory(recipe, shape, strategy=strategy, nodes=nodes, gpus_per_node=per_node)
    count = count_parameters(recipe, shape)
    assert (
        f"| `{name}` | {strategy} on {nodes * per_node} | {count.model / 1e9:.2f} B | {count.trained / 1e6:,.0f} M | "
        f"{memory.total_bytes / GIB:.1f} GiB |"
    ) in text.splitlines()


def test_a_users_recipe_may_extend_a_shipped_one_that_extends_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: gemma3_27b_sft_tiny\nname: mine\nmodel: {config: {num_hidden_layers: 3}}\n")
    config = load_recipe(str(path)).model.config
    assert (config["num_hidden_layers"], config["hidden_size"]) == (3, 96)
