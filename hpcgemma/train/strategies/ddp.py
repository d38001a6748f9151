"""Distributed data parallel: a whole copy of the model on each rank, gradients averaged. Through accelerate."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from hpcgemma.recipes.types import Recipe
from hpcgemma.train.anatomy import decoder_layers
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.model import build_model
from hpcgemma.train.objective import Objective
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.strategies.native import NativeStrategy, images_to_share


class DataParallelStrategy(NativeStrategy):
    """A model on each rank; with one rank, the model itself.

    The process group must exist: accelerate takes the one it finds.

    Args:
        recipe: What to train.
        prepared: The data, for the vocabulary.
        ranks: All ranks.
        device: What this rank computes on.
    """

    moves_together = False

    def __init__(self, recipe: Recipe, prepared: PreparedData, ranks: Ranks, device: torch.device) -> None:
        built = build_model(recipe, prepared, device)
        self.notes = built.notes
        training = recipe.training
        if training.activation_checkpointing:
            built.model.activation_checkpointing_enable({"use_reentrant": False})
        if training.compile:
            for layer in decoder_layers(built.model, None):
                layer.compile(dynamic=True)
        super().__init__(built.model, recipe, images_to_share(built.model, prepared, moves_together=False))
        # Gradients are views of the buckets in which they are exchanged: they are in memory once, not twice.
        # Without a single image a vision tower is left without gradients, which DDP must look for.
        options = DistributedDataParallelKwargs(
            gradient_as_bucket_view=True,
            find_unused_parameters=recipe.model.kind == "vision" and prepared.images is None,
        )
        self._accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[options])
        self.evaluated: nn.Module = Objective(built.model, training, autocast=True)
        self.objective: nn.Module = self._accelerator.prepare_model(self.evaluated, device_placement=False)

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Return a context for one forward and backward pass; gradients are exchanged in the last one of a step."""
        if is_last:
            return nullcontext()
        context: AbstractContextManager[object] = self._accelerator.no_sync(self.objective)
        return context
