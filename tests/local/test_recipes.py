"""Shipped recipes from submission to the finished model; tests/train/test_recipes.py trains all of them."""

from __future__ import annotations

import math

import pytest
import yaml

from hpcgemma.recipes import load_recipe
from tests.scenario import Terminal


@pytest.mark.parametrize("twin", ["gemma2_9b_lora_tiny"])
def test_a_recipe_trains_as_its_tiny_twin(terminal: Terminal, twin: str) -> None:
    said = terminal.json("submit", "--profile", "local", "--recipe", twin, "--name", twin, "--wait")
    run = terminal.training(twin)
    assert (said["state"], said["step"], said["attempts"]) == ("COMPLETED", 20, 1), run.logs()
    losses = [loss for loss, _ in run.losses().values()]
    assert len(losses) == 20
    assert all(map(math.isfinite, losses))
    assert list((run.folder / "final").glob("*.safetensors"))
    kept = yaml.safe_load((run.folder / "run.yaml").read_text())
    assert kept["recipe"]["strategy"]["name"] == kept["plan"]["strategy"] == load_recipe(twin).strategy.name
    assert kept["plan"]["strategy_reason"]
