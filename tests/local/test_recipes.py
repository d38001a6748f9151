"""Every shipped recipe trains, as its tiny twin: its strategy, optimizer, precision and method, on this machine."""

from __future__ import annotations

import math

import pytest
import yaml

from hpcgemma.recipes import load_recipe, recipe_names
from tests.scenario import Terminal, Training

TWINS = [name for name in recipe_names() if name.endswith("_tiny") and name.removesuffix("_tiny") in recipe_names()]


@pytest.mark.parametrize("twin", TWINS)
def test_a_recipe_trains_as_its_tiny_twin(terminal: Terminal, twin: str) -> None:
    said = terminal.json("submit", "--profile", "local", "--recipe", twin, "--name", twin, "--wait")
    run = Training(terminal, twin, terminal.folder.parent / "runs" / twin, said["job_id"])
    assert (said["state"], said["step"], said["attempts"]) == ("COMPLETED", 20, 1), run.logs()
    losses = [loss for loss, _ in run.losses().values()]
    assert len(losses) == 20
    assert all(map(math.isfinite, losses))
    assert list((run.folder / "final").glob("*.safetensors"))
    kept = yaml.safe_load((run.folder / "run.yaml").read_text())
    asked = load_recipe(twin).strategy.name
    assert kept["recipe"]["strategy"]["name"] == kept["plan"]["strategy"] == ("ddp" if asked == "auto" else asked)
    assert kept["plan"]["strategy_reason"]
