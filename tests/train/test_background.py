"""Saves that are written beside the training: the same bits, no step lost, the state as it was at the boundary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpcgemma.train.background import HostCopy
from tests.train.launch import Run, assert_same

SAVES = {
    "training.max_steps": 11,
    "checkpoint.every_steps": 2,
    "evaluation.every_steps": 5,
    "model.config.attention_dropout": 0.1,
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"strategy.name": "fsdp"},
    "zero-2": {"strategy.name": "deepspeed", "strategy.zero_stage": 2},
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_training_that_saves_beside_itself_has_the_same_bits_and_resumes_to_them(
    tmp_path: Path, strategy: str
) -> None:
    reference = Run(tmp_path / "reference", SAVES | STRATEGIES[strategy])
    assert reference.train(2)["outcome"] == "finished", reference.log()
    run = Run(tmp_path / "run", SAVES | STRATEGIES[strategy] | {"checkpoint.asynchronous": True})
    (run.folder.prepared_dir).symlink_to(reference.folder.prepared_dir)
    assert run.train(2)["outcome"] == "finished", run.log()
    assert [event["step"] for event in run.events("saved")] == [event["step"] for event in reference.events("saved")]
    assert run.checkpoints() == reference.checkpoints()
    assert all(event["stall_s"] <= event["seconds"] for event in run.events("saved"))
    assert_same(run, reference)
    (run.folder.final_dir).rename(tmp_path / "final")
    (run.folder.checkpoints_dir / "step-11").rename(tmp_path / "step-11")
    assert run.train(2)["outcome"] == "finished", run.log()
    assert run.events("resumed")[0]["step"] == 10
    assert_same(run, reference)


def test_a_copy_stays_as_it_was_and_its_memory_is_used_again() -> None:
    copy = HostCopy(torch.device("cpu"))
    weights = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    copies = copy.of(weights)
    weights["a"].add_(1)
    assert copies["a"].tolist() == [1, 1, 1]
    again = copy.of(weights)
    assert again["a"].tolist() == [2, 2, 2]
    assert again["a"].data_ptr() == copies["a"].data_ptr()
