"""Every shipped recipe trains, as its tiny twin: its model, strategy, optimizer, precision and method."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from hpcgemma import hub
from hpcgemma.plan import make_plan
from hpcgemma.profiles import load_profile
from hpcgemma.recipes import load_recipe, recipe_names
from hpcgemma.strategy import with_strategy
from tests.train.launch import Run

TWINS = [name for name in recipe_names() if name.endswith("_tiny") and name.removesuffix("_tiny") in recipe_names()]


def test_every_recipe_but_the_demo_has_a_twin() -> None:
    assert {name.removesuffix("_tiny") for name in TWINS} | set(TWINS) == set(recipe_names()) - {"svg_captions_tiny"}


@pytest.mark.parametrize("twin", TWINS)
def test_a_recipe_trains_as_its_tiny_twin(tmp_path: Path, twin: str) -> None:
    recipe = load_recipe(twin)
    plan = make_plan(load_profile("local"), recipe, run_name=twin, run_id="twin", model_config=hub.model_config(recipe))
    run = Run(tmp_path / "run")
    content = {"run_id": "twin", "recipe": with_strategy(recipe, plan.strategy).model_dump(mode="json")}
    run.folder.run_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert run.train(plan.world_size)["outcome"] == "finished", run.log()
    losses = [loss for loss, _ in run.losses().values()]
    assert len(losses) == 20
    assert all(map(math.isfinite, losses))
    assert list(run.folder.final_dir.glob("*.safetensors"))
