"""What the tests of XLA share: one recipe, trained on XLA's CPU device, and by DDP on the CPU itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpcgemma.recipes.store import load_recipe
from hpcgemma.recipes.types import Recipe
from tests.train.launch import Run

SETTINGS = [
    "training.epochs=10",
    "training.max_steps=10",
    "training.global_batch=128",  # a multiple of 128, as XLA's rule wants it
    "training.micro_batch=32",
    "training.eval_micro_batch=32",
    "optimizer.learning_rate=0.005",  # ten steps are to move it
    "evaluation.every_steps=5",
    "checkpoint.every_steps=5",
]
DEADLINE_S = 600.0
"""XLA compiles for most of the time of so short a training."""


@pytest.fixture(scope="session", autouse=True)
def xla_computes_on_the_cpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PJRT_DEVICE", "CPU")
        patch.setattr("tests.train.launch.DEADLINE_S", DEADLINE_S)
        yield


def recipe_of(strategy: str, *more: str) -> Recipe:
    """Return the tiny twin of the shipped recipe, ten steps long, under a strategy; nothing else differs."""
    return load_recipe("gemma3_270m_tpu_tiny", [*SETTINGS, f"strategy.name={strategy}", *more])


def run_of(path: Path, strategy: str, *more: str) -> Run:
    """Return a run of that recipe that has not begun."""
    return with_recipe(Run(path), recipe_of(strategy, *more))


def with_recipe(run: Run, recipe: Recipe) -> Run:
    """Return a run with another recipe."""
    content: dict[str, Any] = {"run_id": "the-run", "recipe": recipe.model_dump(mode="json")}
    run.folder.run_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return run


def trained(run: Run) -> Run:
    """Train in a process of its own, to the end."""
    run.start(1)
    run.wait()
    assert run.outcome()["outcome"] == "finished", run.log()
    return run


@pytest.fixture(scope="session")
def by_ddp(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(run_of(tmp_path_factory.mktemp("ddp") / "run", "ddp"))


@pytest.fixture(scope="session")
def on_xla(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(run_of(tmp_path_factory.mktemp("xla") / "run", "xla"))
