from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from hpcgemma import configfile
from hpcgemma.errors import ConfigError, InputError
from hpcgemma.recipes import Recipe, load_recipe, recipe_names
from hpcgemma.recipes.foreign_names import FOREIGN_NAMES


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
    assert (
        "strategy.name: 'dpd' is not valid (did you mean 'ddp'? valid: 'auto', 'ddp', 'fsdp', 'deepspeed' or 'xla')"
        in text
    )
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
    assert caught.value.hint == f"did you mean 'gemma2_9b_lora'? valid: {', '.join(recipe_names())}"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("training.gradient_checkpointing=true", "here it is training.activation_checkpointing"),
        ("gradient_checkpointing=true", "here it is training.activation_checkpointing"),
        ("strategy.activation_checkpointing=true", "here it is training.activation_checkpointing"),
        ("fsdp_config.x=1", "here it is the fields of strategy, and training.activation_checkpointing"),
        ("per_device_train_batch_size=1", "here it is training.micro_batch"),
        (
            "training.gradient_accumulation_steps=4",
            "here it is training.global_batch: what it leaves beside micro_batch x GPUs is accumulated",
        ),
        ("lora.lora_alpha=8", "here it is lora.alpha"),
        ("bf16=true", "here it is training.precision=bf16"),
        ("learning_rate=1e-4", "it is optimizer.learning_rate"),
        ("training.learning_rate=1e-4", "it is optimizer.learning_rate"),
        ("optimizer.dora=true", "it is lora.dora"),
    ],
)
def test_a_field_of_another_tool_or_section_says_where_it_is_here(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("svg_captions_tiny", [setting])
    assert [problem.hint for problem in caught.value.problems] == [said]


def test_every_foreign_name_leads_to_a_field_and_is_none_itself() -> None:
    fields = {path: path.rpartition(".")[2] for path in configfile._all_fields(Recipe)}
    for name, place in FOREIGN_NAMES.items():
        assert name not in Recipe.model_fields, name
        named = [word.rstrip(",:").partition("=")[0] for word in place.split()]
        assert any(word in fields for word in named) or "submit" in place or name == "fsdp_config", name


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
