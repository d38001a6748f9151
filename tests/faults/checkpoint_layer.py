"""The checkpoint layer alone: the code that saves, finds, verifies and loads, around tensors that a step decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.provenance import Provenance
from hpcgemma.train.checkpointing import Checkpointing
from hpcgemma.train.environment import Environment
from hpcgemma.train.progress import Progress
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.strategies import Strategy, sharded_state

TENSORS = 12
ROWS_A_STEP = 8


def tensors_of(step: int) -> dict[str, torch.Tensor]:
    """Return what is saved at a step: every element tells the step."""
    return {
        f"optimizer/layer.{number}/exp_avg" if number % 2 else f"weights/layer.{number}": torch.arange(256.0) + step
        for number in range(TENSORS)
    }


class Tensors:
    """What a strategy writes and reads, without a model."""

    def __init__(self) -> None:
        self.held = tensors_of(0)

    def saved_state(self) -> dict[str, torch.Tensor]:
        """Return them."""
        return self.held

    def load(self, folder: Path) -> None:
        """Read them."""
        self.held = {key: torch.full_like(each, -1) for key, each in self.held.items()}
        sharded_state.read(folder, self.held)


class Layer:
    """A run's checkpoints, saved and resumed by one rank.

    Args:
        path: The run folder.
        asynchronous: Whether saves that may fail are written beside.
    """

    def __init__(self, path: Path, *, asynchronous: bool = False) -> None:
        self.tensors = Tensors()
        here = Environment(rank=0, world_size=1, local_rank=0, attempt=1, device="cpu", interruption_every_h=24.0)
        self._checkpointing = Checkpointing(
            RunFolder(path),
            Ranks(here, torch.device("cpu")),
            cast(Strategy, self.tensors),
            run_id="the-run",
            recipe_fingerprint="recipe",
            made_with=Provenance(data="data", libraries={}),
            allowed={},
            keep=2,
            asynchronous=asynchronous,
        )

    def resume(self, attempt: int = 1) -> int:
        """Load the newest sound checkpoint and return its step."""
        return self._checkpointing.resume(attempt).step

    def save(self, step: int) -> None:
        """Save a step as in the middle of a training."""
        self._checkpointing.save(self._reach(step))

    def save_at_last(self, step: int) -> None:
        """Save a step as before the end."""
        self._checkpointing.save_at_last(self._reach(step), try_for_s=0.0, on_refusal=lambda: None)

    def _reach(self, step: int) -> Progress:
        self.tensors.held = tensors_of(step)
        return Progress(step=step, samples=ROWS_A_STEP * step)

    def saved_step(self) -> int:
        """Return the newest step that is known to be saved."""
        return self._checkpointing.saved_step or 0

    def is_at(self, step: int) -> bool:
        """Whether what was loaded is what that step decides, bit by bit."""
        expected: dict[str, Any] = tensors_of(step)
        return all(torch.equal(each, expected[key]) for key, each in self.tensors.held.items())
