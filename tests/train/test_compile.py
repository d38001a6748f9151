"""torch.compile changes speed and not losses, under each strategy that it goes with. A CPU compiles for a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.train import launch
from tests.train.launch import Run

FIVE_STEPS = {"training.max_steps": 5, "model.config.attention_dropout": 0.0, "evaluation.every_steps": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"strategy.name": "ddp"},
        {"strategy.name": "fsdp"},
        {"strategy.name": "fsdp", "training.activation_checkpointing": True},
        {"strategy.name": "deepspeed", "strategy.zero_stage": 2},
    ],
    ids=["ddp", "fsdp", "fsdp-checkpointing", "zero-2"],
)
def test_a_compiled_model_has_the_losses_of_an_uncompiled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(launch, "DEADLINE_S", 900.0)
    plain = Run(tmp_path / "plain", FIVE_STEPS)
    plain.train_here()
    compiled = Run(tmp_path / "compiled", FIVE_STEPS | changes | {"training.compile": True})
    assert compiled.train(2)["outcome"] == "finished", compiled.log()
    for step, values in compiled.losses().items():
        assert values == pytest.approx(plain.losses()[step], rel=1e-5)
