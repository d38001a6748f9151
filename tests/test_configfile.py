from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from hpcgemma import configfile
from hpcgemma.errors import ConfigError, InputError
from hpcgemma.recipes import Recipe, load_recipe, recipe_names


def test_numbers_and_words_are_read_as_yaml_1_2_has_them() -> None:
    assert configfile.parse_yaml("[1e-4, 12:30:00, on, no, true, 0x10, ~, .5, 7, -3]") == [
        1e-4,
        "12:30:00",
        "on",
        "no",
        True,
        16,
        None,
        0.5,
        7,
        -3,
    ]


def test_yaml_cannot_make_python_objects() -> None:
    with pytest.raises(Exception, match="could not determine a constructor"):
        configfile.parse_yaml("!!python/object/apply:os.system [echo]")


def test_every_shipped_recipe_is_valid_and_named_as_its_file() -> None:
    assert recipe_names() == ["gemma2_9b_lora", "svg_captions_tiny"]
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_all_problems_are_reported_at_once_with_place_and_what_is_valid() -> None:
    settings = ["training.epoch=1", "training.micro_batch=abc", "strategy.name=dpd", "resources.walltime=soon"]
    with pytest.raises(ConfigError) as caught:
        load_recipe("svg_captions_tiny", settings)
    lines = caught.value.problem.splitlines()
    assert lines[0] == "recipe 'svg_captions_tiny': 4 problems"
    text = "\n".join(lines[1:])
    assert "training.epoch: unknown field (did you mean 'epochs'? valid: activation_checkpointing, " in text
    assert "training.micro_batch: 'abc': input should be a valid integer" in text
    assert "strategy.name: 'dpd' is not valid (did you mean 'ddp'? valid: 'ddp' or 'deepspeed')" in text
    assert "resources.walltime: 'soon': 'soon' is not a walltime; write MINUTES, " in text


def test_a_problem_in_a_file_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: svg_captions_tiny\nname: mine\ntraining:\n  micro_batch: 8\n  epochz: 3\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path))
    assert f"{path}:5: training.epochz: unknown field (did you mean 'epochs'?" in caught.value.problem


def test_a_recipe_that_extends_another_differs_only_where_it_says_so(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: svg_captions_tiny\nname: mine\ntraining: {epochs: 3}\n")
    mine, base = load_recipe(str(path)), load_recipe("svg_captions_tiny")
    assert mine.training == base.training.model_copy(update={"epochs": 3.0})
    assert mine.model_copy(update={"name": base.name, "training": base.training}) == base


def test_extending_in_a_circle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: ./b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: ./a.yaml\n")
    with pytest.raises(ConfigError, match=r"goes in a circle: a.yaml -> b.yaml -> a.yaml"):
        load_recipe(str(tmp_path / "a.yaml"))


def test_a_field_written_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("extends: svg_captions_tiny\nname: twice\nname: again\n")
    with pytest.raises(ConfigError, match=r"twice.yaml:3: name: is written twice"):
        load_recipe(str(path))


@pytest.mark.parametrize("text", ["a: [1, 2", "- just\n- a list\n", "a: b: c"])
def test_a_file_that_is_no_mapping_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_recipe(str(path))


@pytest.mark.parametrize("setting", ["training.epochs", "=1", "a..b=1", "training.epochs=[1"])
def test_a_setting_of_the_wrong_form_is_an_error(setting: str) -> None:
    with pytest.raises(ConfigError):
        load_recipe("svg_captions_tiny", [setting])


def test_an_unknown_recipe_lists_the_valid_ones() -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("gemma2_9b_lorra")
    assert caught.value.problem == "there is no recipe named 'gemma2_9b_lorra'"
    assert caught.value.hint == "did you mean 'gemma2_9b_lora'? valid: gemma2_9b_lora, svg_captions_tiny"


def test_the_users_own_recipe_comes_before_the_shipped_one(own_folders: Path) -> None:
    folder = own_folders / "config" / "recipes"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("extends: svg_captions_tiny\nname: mine\n")
    assert load_recipe("mine").name == "mine"


def test_every_field_of_a_recipe_carries_its_doc() -> None:
    def undocumented(model: type[BaseModel], path: str) -> list[str]:
        found = []
        for name, info in model.model_fields.items():
            if not info.description:
                found.append(f"{path}{name}")
            for section in configfile._models_in(info.annotation):
                found += undocumented(section, f"{path}{name}.")
        return found

    assert undocumented(Recipe, "") == []


def test_gemma2_9b_lora_holds_every_hyperparameter_of_its_system() -> None:
    recipe = load_recipe("gemma2_9b_lora")
    assert recipe.lora is not None
    assert recipe.lora.model_dump() == {
        "rank": 64,
        "alpha": 128,
        "dropout": 0.1,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
    }
    assert recipe.optimizer.model_dump() == {
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
    assert training.global_batch == 16 * training.micro_batch * recipe.resources.gpus_per_node
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
    assert (recipe.data.num_workers, recipe.data.pin_memory) == (2, True)
    assert (recipe.strategy.name, recipe.strategy.zero_stage, recipe.strategy.offload_optimizer) == (
        "deepspeed",
        2,
        False,
    )
    shape = recipe.model.config
    assert (shape["num_hidden_layers"], shape["hidden_size"], shape["intermediate_size"]) == (42, 3584, 14336)
    assert (shape["num_attention_heads"], shape["num_key_value_heads"], shape["vocab_size"]) == (16, 8, 256000)
    assert (shape["sliding_window"], shape["max_position_embeddings"]) == (4096, 8192)
    assert (shape["attn_logit_softcapping"], shape["final_logit_softcapping"]) == (50.0, 30.0)
