"""What is known of a model without a network: its config.json in a folder or the cache, else the recipe's words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcgemma import hub
from hpcgemma.recipes import load_recipe
from hpcgemma.recipes.types import Recipe

CONFIG = {"model_type": "gemma2", "hidden_size": 7}


def recipe_of(*settings: str) -> Recipe:
    return load_recipe("gemma2_2b_qlora", settings)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache with two commits of one repository; main is the first."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--google--gemma-2-2b-it"
    for commit, size in (("b" * 40, 7), ("a" * 40, 8)):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": size}))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    return repository


def test_a_folder_tells_its_own_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert hub.model_config(recipe_of(f"model.path={tmp_path}")) == CONFIG


def test_the_cache_tells_the_config_of_the_newest_or_of_a_revision(cache: Path) -> None:
    assert hub.is_cached("google/gemma-2-2b-it")
    assert hub.model_config(recipe_of()) == CONFIG
    assert hub.model_config(recipe_of(f"model.revision={'a' * 40}"))["hidden_size"] == 8


def test_without_a_file_the_recipe_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert not hub.is_cached("google/gemma-2-2b-it")
    recipe = recipe_of()
    assert hub.model_config(recipe) == recipe.model.config
    assert hub.hub_cache() == tmp_path / "hub"


@pytest.mark.parametrize("content", ["", "{", "[1]", "\0"])
def test_a_broken_config_tells_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    recipe = recipe_of(f"model.path={tmp_path}")
    assert hub.model_config(recipe) == recipe.model.config


def test_a_random_start_has_the_vocabulary_of_the_tokenizer_that_is_trained() -> None:
    recipe = load_recipe("svg_captions_tiny", ["tokenizer.train_vocab_size=501"])
    assert hub.model_config(recipe)["vocab_size"] == 504
    assert hub.model_config(load_recipe("gemma2_9b_lora_tiny"))["vocab_size"] == 512
