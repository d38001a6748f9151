"""What the strategies of torch itself have in common: the optimizer steps on the model's own parameters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from hpcgemma.recipes.types import Recipe
from hpcgemma.train.anatomy import trains_tower
from hpcgemma.train.data.batches import MicroBatch, with_blank
from hpcgemma.train.data.images import Images
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.optimizer_states import put_states, states_by_name
from hpcgemma.train.optimizers import build_optimizer, set_learning_rate
from hpcgemma.train.parameters import aliases, plain_names
from hpcgemma.train.strategies import sharded_state


class NativeStrategy:
    """A strategy in which gradients and optimizer belong to the model's own parameters.

    Args:
        model: The transformers or peft model, as the strategy has laid it out.
        recipe: Optimizer and clipping.
        images: Those of the data, where every batch must show one; None: a batch need not.
    """

    def __init__(self, model: Any, recipe: Recipe, images: Images | None = None) -> None:
        self.model = model
        self._images = images
        self._parameters = plain_names(model)
        self._trained = {name: each for name, each in self._parameters.items() if each.requires_grad}
        self._max_norm = recipe.training.max_grad_norm
        self._optimizer = build_optimizer(self._trained, recipe.optimizer)

    def shaped(self, batch: MicroBatch) -> MicroBatch:
        """Return a batch; any shape will do, but it may have to show an image."""
        return batch if self._images is None else with_blank(batch, self._images)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss; over the ranks they are averaged."""
        run: Callable[[], None] = loss.backward
        run()

    def step(self, learning_rate: float) -> torch.Tensor:
        """Clip, update the weights, forget the gradients. Return the gradient's norm before clipping."""
        limit = float("inf") if self._max_norm is None else self._max_norm
        norm = whole(nn.utils.clip_grad_norm_(self._trained.values(), limit))
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()
        self.discard()
        return norm

    def discard(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def generating(self) -> AbstractContextManager[object]:
        """Return a context in which the bare model may generate."""
        return nullcontext()

    def saved_state(self) -> dict[str, torch.Tensor]:
        """Return trained weights and the optimizer's state."""
        tensors = self._weights()
        for name, states in states_by_name(self._optimizer, self._trained).items():
            tensors |= {sharded_state.state_key(name, key): value for key, value in states.items()}
        return tensors

    def load(self, folder: Path) -> None:
        """Load what was saved, also what another strategy or number of ranks wrote; all ranks together."""
        contents = self._contents(folder)
        states = {
            name: {
                key: torch.zeros_like(parameter, dtype=entry.dtype, requires_grad=False)
                if entry.shape == tuple(parameter.shape) and key != "step"
                else torch.zeros(entry.shape, dtype=entry.dtype)
                for key, entry in sharded_state.states_of(contents, name).items()
            }
            for name, parameter in self._trained.items()
        }
        tensors = self._weights()
        for name, found in states.items():
            tensors |= {sharded_state.state_key(name, key): value for key, value in found.items()}
        sharded_state.read(folder, tensors)
        put_states(self._optimizer, self._trained, {name: found for name, found in states.items() if found})

    def load_weights(self, folder: Path) -> None:
        """Load the trained weights alone; all ranks together."""
        self._contents(folder)
        sharded_state.read(folder, self._weights())

    def _weights(self) -> dict[str, torch.Tensor]:
        return {sharded_state.weight_key(name): each.detach() for name, each in self._trained.items()}

    def _contents(self, folder: Path) -> dict[str, sharded_state.Entry]:
        return sharded_state.contents_of(folder, {name: tuple(each.shape) for name, each in self._trained.items()})

    def whole_weights(self, *, trained_only: bool) -> dict[str, torch.Tensor]:
        """Return weights by their names in ``model``, whole, on the CPU of rank 0; nothing elsewhere."""
        is_first = not dist.is_initialized() or dist.get_rank() == 0
        found = {}
        for name, parameter in (self._trained if trained_only else self._parameters).items():
            tensor = whole(parameter.detach())
            if is_first:
                found[name] = tensor.cpu()
        return found | aliases(self.model, found)


def images_to_share(model: Any, prepared: PreparedData, *, moves_together: bool) -> Images | None:
    """Return the data's images where every batch must show one: ranks go through the vision tower together.

    Args:
        model: The model.
        prepared: The data.
        moves_together: Whether a forward pass needs all ranks.

    Returns:
        None where batches need show none: there are no images, or each rank has a tower of its own that is not trained.
    """
    return prepared.images if moves_together or trains_tower(model) else None


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whole, gathered from all ranks where it is sharded; all ranks together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
