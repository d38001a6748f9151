"""XLA: a copy of the model on each core of a TPU, gradients averaged. Through torch_xla, in its lazy mode.

Operations are only recorded; ``torch_xla.sync`` hands what was recorded to the device and does not wait for it. XLA
compiles each new sequence of operations, for a minute or more, so everything here keeps to few of them: batches of one
shape, numbers that change kept on the device, and nothing read from it between two logs.

Letters: B rows, T positions, N learned tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.runtime as xr
from torch import nn
from torch_xla._internal import pjrt
from torch_xla.utils.checkpoint import checkpoint
from transformers.masking_utils import create_masks_for_generate

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import Recipe, TrainingSpec
from hpcgemma.train.anatomy import bare_model, decoder_of, head_of
from hpcgemma.train.data.batches import MicroBatch
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.linear_loss import summed_cross_entropy
from hpcgemma.train.model import build_model
from hpcgemma.train.objective import Objective
from hpcgemma.train.optimizer_states import put_states, states_by_name
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.strategies import sharded_state
from hpcgemma.train.strategies.native import NativeStrategy
from hpcgemma.train.strategies.xla_shapes import NO_LABEL, Shapes

_CPU = torch.device("cpu")


class XlaStrategy(NativeStrategy):
    """A model on each core, and a process for each core.

    Args:
        recipe: What to train.
        prepared: The data, for the vocabulary and the lengths.
        ranks: All ranks; they agree over gloo, only gradients travel between cores.
        device: XLA's.

    Raises:
        InputError: There are not as many cores as ranks, or rows are packed.
    """

    # All cores run the same programs equally often, so none can wait for one that has nothing to evaluate.
    moves_together = True

    def __init__(self, recipe: Recipe, prepared: PreparedData, ranks: Ranks, device: torch.device) -> None:
        if prepared.samples.is_packed:
            # transformers reads from the device where rows begin, and each batch would need masks of its own.
            raise InputError(
                "data.packing is not supported by strategy.name xla, whose batches have one shape without it",
                "--set data.packing=false",
            )
        _start(ranks)
        training = recipe.training
        # On the CPU first: so its random numbers are those of every other strategy.
        built = build_model(recipe, prepared, device, weights_on=_CPU)
        move(built.model, device)
        if training.activation_checkpointing:
            _checkpoint_activations(bare_model(built.model))
        optimizer = recipe.optimizer.model_copy(update={"fused": False})
        super().__init__(built.model, recipe.model_copy(update={"optimizer": optimizer}))
        self._is_first = ranks.is_first
        self._shapes = Shapes.of(prepared, training)
        self.notes = [
            *built.notes,
            f"xla: {xr.device_type()} through torch_xla {torch_xla.__version__}; {self._shapes}",
        ]
        self.objective: nn.Module = XlaObjective(built.model, training)
        self.evaluated: nn.Module = self.objective
        torch_xla.sync()

    def shaped(self, batch: MicroBatch) -> MicroBatch:
        """Return a batch, still on the host, filled up to a shape that is compiled already."""
        return self._shapes.fill(batch)

    @contextmanager
    def accumulating(self, *, is_last: bool) -> Iterator[None]:
        """Run one forward and backward pass as one program; gradients are exchanged in ``step``."""
        # XLA has random numbers of its own; the loop has seeded torch's.
        torch_xla.manual_seed(torch.initial_seed())
        yield
        torch_xla.sync()

    def step(self, learning_rate: float) -> torch.Tensor:
        """Average gradients over the cores, clip, update the weights. Return the norm before clipping, unread."""
        xm.reduce_gradients(self._optimizer)
        norm = super().step(learning_rate)
        torch_xla.sync()
        return norm

    def saved_state(self) -> dict[str, torch.Tensor]:
        """Return trained weights and the optimizer's state; all ranks together, but the master alone reads them.

        Every core has the same, and a TPU's host has one way to its disk.
        """
        tensors = self._weights()
        for name, states in states_by_name(self._optimizer, self._trained).items():
            tensors |= {sharded_state.state_key(name, key): value for key, value in states.items()}
        torch_xla.sync()
        return {key: each.cpu() for key, each in tensors.items()} if self._is_first else {}

    def load(self, folder: Path) -> None:
        """Load what was saved, also what another strategy or number of ranks wrote; all ranks together."""
        contents = self._contents(folder)
        tensors = self._read(folder, contents)
        states = {
            name: {key: tensors[sharded_state.state_key(name, key)] for key in sharded_state.states_of(contents, name)}
            for name in self._trained
        }
        put_states(self._optimizer, self._trained, {name: found for name, found in states.items() if found})
        torch_xla.sync()

    def load_weights(self, folder: Path) -> None:
        """Load the trained weights alone; all ranks together."""
        contents = self._contents(folder)
        self._read(folder, {key: contents[key] for key in self._weights()})
        torch_xla.sync()

    def _read(self, folder: Path, entries: dict[str, sharded_state.Entry]) -> dict[str, torch.Tensor]:
        """Read tensors into host memory, and weights on to the device."""
        tensors = {key: torch.empty(entry.shape, dtype=entry.dtype) for key, entry in entries.items()}
        sharded_state.read(folder, tensors)
        with torch.no_grad():
            for key, weight in self._weights().items():
                weight.copy_(tensors[key])
        return tensors


class XlaObjective(Objective):
    """A model and its loss, which leaves out the places that fill a batch up.

    Args:
        model: A transformers model, or a peft model around one.
        training: Chunk of the loss.
    """

    def __init__(self, model: nn.Module, training: TrainingSpec) -> None:
        super().__init__(model, training, autocast=True)
        self._masks: dict[int, Any] = {}

    def forward(
        self,
        ids_BT: torch.Tensor,
        positions_N: torch.Tensor,
        labels_N: torch.Tensor,
        position_ids_BT: torch.Tensor | None = None,
        pixel_values_ICHW: torch.Tensor | None = None,
        token_type_ids_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the summed cross-entropy of learned tokens, a scalar in fp32; see ``Objective``."""
        with torch.autocast("xla", torch.bfloat16, enabled=self._autocast):
            hidden_BTD = self._hidden(ids_BT, position_ids_BT, pixel_values_ICHW, token_type_ids_BT)
            head = head_of(self.model)
            loss = summed_cross_entropy(
                hidden_BTD.flatten(0, 1)[positions_N],
                head.weight,
                labels_N.clamp(min=0),
                counts_N=labels_N != NO_LABEL,
                bias_V=head.bias,
                softcap=head.softcap,
                logit_scale=head.logit_scale,
                chunk_tokens=self._chunk_tokens,
            )
        if not torch.is_grad_enabled():
            torch_xla.sync()  # a backward pass follows otherwise, in the same program
        return loss

    def _hidden(
        self,
        ids_BT: torch.Tensor,
        position_ids_BT: torch.Tensor | None,
        pixel_values_ICHW: torch.Tensor | None,
        token_type_ids_BT: torch.Tensor | None,
    ) -> torch.Tensor:
        width = ids_BT.shape[1]
        if width not in self._masks:
            self._masks[width] = _masks(bare_model(self.model), width, ids_BT.device)
        decoder: Any = decoder_of(self.model)
        output = decoder(input_ids=ids_BT, attention_mask=self._masks[width], use_cache=False)
        hidden_BTD: torch.Tensor = output.last_hidden_state
        return hidden_BTD


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model; what shares a parameter goes on sharing it.

    ``nn.Module.to`` makes new parameters for XLA, module by module: an output head tied to the embeddings would get
    one of its own.
    """
    moved: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter not in moved:
                moved[parameter] = nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
            setattr(module, name, moved[parameter])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device))


def _start(ranks: Ranks) -> None:
    """Give this process its core; before it, no tensor may be on the device.

    torch_xla does this itself under torchrun alone, or in processes that it started (``xla://``, ``torch_xla.launch``);
    these are calls that it makes then.

    Raises:
        InputError: There are not as many cores as ranks: gradients would be averaged over the wrong ones.
    """
    if ranks.world_size == 1:
        pjrt.initialize_singleprocess()
    else:
        pjrt.initialize_multiprocess(ranks.local_rank, ranks.per_node)
    cores = xr.world_size()
    if cores != ranks.world_size:
        raise InputError(
            f"strategy.name xla needs one core for each process: XLA sees {cores} on {xr.device_type()}, and there are "
            f"{ranks.world_size} processes",
            f"--set resources.gpus_per_node={cores}, on one node",
        )


def _checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass.

    With torch's own checkpointing XLA would see the same operations twice, and merge them into one that keeps all.
    torch_xla's puts a barrier between them; it is reentrant, so what enters a layer must require a gradient.
    """
    if not model.get_input_embeddings().weight.requires_grad:
        model.enable_input_require_grads()

    def recomputed(function: Any, *inputs: Any) -> Any:
        return checkpoint(function, *inputs) if torch.is_grad_enabled() else function(*inputs)

    model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=recomputed)


def _masks(model: Any, width: int, device: torch.device) -> Any:
    """Return the attention masks that the model would make for whole rows, by the kind of layer where it has several.

    Left to itself it reads from the device, in each forward pass, whether rows are packed (transformers 5.23).
    """
    weight = model.get_input_embeddings().weight
    embedded_1TD = torch.empty(1, width, weight.shape[1], dtype=weight.dtype)
    made = create_masks_for_generate(model.config, embedded_1TD, None, None)
    if isinstance(made, dict):
        return {kind: mask.to(device) for kind, mask in made.items()}
    return made if made is None else made.to(device)
