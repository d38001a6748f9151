"""How a training is spread over ranks: one file per strategy, behind one protocol."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hpcgemma.recipes.types import Recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.data.batches import MicroBatch
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.ranks import Ranks


class Inference(Protocol):
    """What an evaluation asks of a model, spread over ranks or whole. Methods marked *together* are for all ranks."""

    @property
    def model(self) -> Any:
        """The transformers or peft model inside."""

    @property
    def evaluated(self) -> nn.Module:
        """What a forward pass of an evaluation goes through."""

    @property
    def moves_together(self) -> bool:
        """Whether a forward pass needs all ranks, since each holds only a part of the weights."""

    def shaped(self, batch: MicroBatch) -> MicroBatch:
        """Return a batch, still on the host, in the shape that a forward pass takes."""

    def generating(self) -> AbstractContextManager[object]:
        """Return a context in which the bare model may generate. *Together* where ``moves_together``."""


class Strategy(Protocol):
    """What the loop asks of a strategy. Methods marked *together* must be called by all ranks."""

    model: Any
    """The transformers or peft model inside."""
    notes: list[str]
    """Sentences on what was chosen, and why."""
    objective: nn.Module
    """What a forward pass of the training goes through; it returns the summed loss."""
    evaluated: nn.Module
    """What a forward pass of an evaluation goes through."""
    moves_together: bool
    """Whether a forward pass needs all ranks, since each holds only a part of the weights."""

    def shaped(self, batch: MicroBatch) -> MicroBatch:
        """Return a batch, still on the host, in the shape that a forward pass takes."""

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Return a context for one forward and backward pass of a step, of which it may be the last."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss; over the ranks they are averaged. *Together*."""

    def step(self, learning_rate: float) -> torch.Tensor:
        """Clip, update the weights, forget the gradients. Return the gradient's norm before clipping. *Together*."""

    def discard(self) -> None:
        """Forget the gradients."""

    def generating(self) -> AbstractContextManager[object]:
        """Return a context in which the bare model may generate. *Together* where ``moves_together``."""

    def saved_state(self) -> dict[str, torch.Tensor]:
        """Return trained weights and the optimizer's state, as ``sharded_state.write`` takes them. *Together*.

        The tensors are those that train: what is written later must be copied now.
        """

    def load(self, folder: Path) -> None:
        """Load what was saved, also by another strategy or another number of ranks. *Together*."""

    def load_weights(self, folder: Path) -> None:
        """Load the trained weights alone. *Together*."""

    def whole_weights(self, *, trained_only: bool) -> dict[str, torch.Tensor]:
        """Return weights by their names in ``model``, whole, on the CPU of rank 0; nothing elsewhere. *Together*."""


def build_strategy(
    recipe: Recipe, prepared: PreparedData, folder: RunFolder, ranks: Ranks, device: torch.device, *, passes: int
) -> Strategy:
    """Build the model, spread it, and return what trains it.

    Args:
        recipe: What to train; its strategy is named, not auto.
        prepared: The data, for the vocabulary.
        folder: The run folder.
        ranks: All ranks.
        device: What this rank computes on.
        passes: Forward passes of each rank in a step.
    """
    name = recipe.strategy.name
    if name == "deepspeed":
        from hpcgemma.train.strategies.deepspeed import ZeroStrategy

        return ZeroStrategy(recipe, prepared, folder, ranks, device, passes=passes)
    if name == "fsdp":
        from hpcgemma.train.strategies.fsdp import FullyShardedStrategy

        return FullyShardedStrategy(recipe, prepared, ranks, device)
    if name == "xla":
        from hpcgemma.train.strategies.xla import XlaStrategy

        on_xla: Strategy = XlaStrategy(recipe, prepared, ranks, device)
        return on_xla
    from hpcgemma.train.strategies.ddp import DataParallelStrategy

    return DataParallelStrategy(recipe, prepared, ranks, device)
