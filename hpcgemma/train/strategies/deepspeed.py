"""DeepSpeed's ZeRO: optimizer states (stage 1), gradients (2) and weights (3) split over the ranks.

Through ``deepspeed.initialize`` itself: accelerate counts one process where there is no GPU.

Its checkpoints are not used. They are pickles, a resume on another number of ranks needs a conversion on the side
(DeepSpeed's universal checkpoint), and that conversion knows Adam alone. What ZeRO holds is saved as all strategies
save it: by parameter, whole, so that any number of ranks, and any strategy, can go on from it.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpcgemma import files
from hpcgemma.recipes.types import Recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.adafactor import Adafactor
from hpcgemma.train.anatomy import decoder_layers
from hpcgemma.train.data.batches import MicroBatch, with_blank
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.model import build_model
from hpcgemma.train.objective import Objective
from hpcgemma.train.optimizer_states import States, adafactor_states, put_adafactor_states
from hpcgemma.train.optimizers import build_optimizer, set_learning_rate
from hpcgemma.train.parameters import aliases, plain_names
from hpcgemma.train.pieces import Piece, Placement
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.strategies import sharded_state
from hpcgemma.train.strategies.native import images_to_share
from hpcgemma.train.strategies.zero_config import deepspeed_config, fit_buckets
from hpcgemma.train.strategies.zero_pieces import zero_placements

READ_BYTES = 1 << 30
"""Bytes of a checkpoint that a rank reads at once."""


class ZeroStrategy:
    """A model under a DeepSpeed engine.

    Args:
        recipe: What to train.
        prepared: The data, for the vocabulary.
        folder: The run folder; DeepSpeed's configuration is written there.
        ranks: All ranks.
        device: What this rank computes on.
        passes: Forward passes of each rank in a step.
    """

    def __init__(
        self,
        recipe: Recipe,
        prepared: PreparedData,
        folder: RunFolder,
        ranks: Ranks,
        device: torch.device,
        *,
        passes: int,
    ) -> None:
        deepspeed = _import_deepspeed(device)
        self._stage = recipe.strategy.zero_stage or 2
        self.moves_together = self._stage == 3
        config = deepspeed_config(recipe, world_size=ranks.world_size, passes=passes)
        if not dist.is_initialized():
            distributed: Any = dist  # its type stubs do not name the store
            dist.init_process_group(
                "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
                store=distributed.HashStore(),
                rank=0,
                world_size=1,
            )
        deepspeed.init_distributed(dist_init_required=False, auto_mpi_discovery=False, verbose=False)
        sharding_while_loading: Any = None
        if self._stage == 3 and recipe.model.path is not None:
            # While this object lives, transformers splits each weight as soon as it is loaded. A random start is made
            # whole on each rank, with the random numbers that it has under every other strategy.
            from transformers.integrations.deepspeed import HfDeepSpeedConfig

            make: Any = HfDeepSpeedConfig
            sharding_while_loading = make(config)
        built = build_model(_in_engine_precision(recipe), prepared, device)
        del sharding_while_loading
        self.model, self.notes = built.model, built.notes
        self._images = images_to_share(self.model, prepared, moves_together=self.moves_together)
        training = recipe.training
        if training.activation_checkpointing:
            # peft under ZeRO-3 needs the reentrant kind (trl#2514).
            self.model.activation_checkpointing_enable({"use_reentrant": self._stage == 3 and recipe.lora is not None})
        if training.compile:
            for layer in decoder_layers(self.model, None):
                layer.compile(dynamic=True)
        self._parameters = plain_names(self.model)
        trained = {name: each for name, each in self._parameters.items() if each.requires_grad}
        self._optimizer = build_optimizer(trained, recipe.optimizer)
        fit_buckets(
            config["zero_optimization"], sum(getattr(each, "ds_numel", each.numel()) for each in trained.values())
        )
        if ranks.is_first:
            files.write_atomically(folder.path / "deepspeed.json", json.dumps(config, indent=1) + "\n")
        # DeepSpeed itself holds the weights in bf16 and the optimizer's copy in fp32: autocast has nothing to do.
        objective = Objective(self.model, training, autocast=False)
        self._engine, *_ = deepspeed.initialize(
            model=objective, optimizer=self._optimizer, config=config, dist_init_required=False
        )
        self._zero: Any = self._engine.optimizer
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in self._parameters.items()}
        self._placements = list(zero_placements(self._zero, names))
        if isinstance(self._optimizer, Adafactor):
            for partition, placement in self._placements:
                self._optimizer.place(partition, placement)
        self.objective: Any = self._engine
        self.evaluated: Any = self._engine

    def shaped(self, batch: MicroBatch) -> MicroBatch:
        """Return a batch; any shape will do, but it may have to show an image."""
        return batch if self._images is None else with_blank(batch, self._images)

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Return a context for one forward and backward pass; gradients are exchanged in the last one of a step."""
        self._engine.set_gradient_accumulation_boundary(is_last)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss; over the ranks they are averaged."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> torch.Tensor:
        """Clip, update the weights, forget the gradients. Return the gradient's norm before clipping."""
        set_learning_rate(self._zero, learning_rate)
        self._engine.step()
        return torch.as_tensor(self._engine.get_global_grad_norm())

    def discard(self) -> None:
        """Forget the gradients."""
        self._zero.zero_grad()

    def generating(self) -> AbstractContextManager[object]:
        """Return a context in which the bare model may generate."""
        return nullcontext()

    def saved_state(self) -> dict[str, torch.Tensor]:
        """Return trained weights and the optimizer's state; all ranks together.

        Each parameter is put together on all ranks in turn, and each rank keeps its share of them to write.
        """
        mine = {}
        for place, (key, tensor) in enumerate(self._whole_state(weights_only=False)):
            if place % dist.get_world_size() == dist.get_rank():
                mine[key] = tensor.cpu()
        return mine

    def load(self, folder: Path) -> None:
        """Load what was saved, also what another strategy or number of ranks wrote; all ranks together."""
        self._load(folder, weights_only=False)

    def load_weights(self, folder: Path) -> None:
        """Load the trained weights alone; all ranks together."""
        self._load(folder, weights_only=True)

    def whole_weights(self, *, trained_only: bool) -> dict[str, torch.Tensor]:
        """Return weights by their names in ``model``, whole, on the CPU of rank 0; nothing elsewhere."""
        deepspeed = _import_deepspeed(self._engine.device)
        is_first = dist.get_rank() == 0
        found = {}
        for key, tensor in self._whole_state(weights_only=True):
            if is_first:
                found[key.removeprefix(sharded_state.weight_key(""))] = tensor.cpu()
        frozen = {} if trained_only else {n: p for n, p in self._parameters.items() if not p.requires_grad}
        for name, parameter in frozen.items():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self._stage == 3):
                if is_first:
                    found[name] = parameter.detach().cpu().clone()
        return found | aliases(self.model, found)

    def _whole_state(self, *, weights_only: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """Return weights in fp32, and the optimizer's states, one after the other, in the same order on all ranks."""
        for partition, placement in self._placements:
            states = {} if weights_only else self._optimizer.state.get(partition, {})
            for piece in placement.pieces:
                yield sharded_state.weight_key(piece.name), _put_together(partition, piece, placement)
                for key, state in states.items():
                    if state.ndim:
                        yield sharded_state.state_key(piece.name, key), _put_together(state, piece, placement)
                    else:
                        yield sharded_state.state_key(piece.name, key), state.reshape(1).clone()
        if isinstance(self._optimizer, Adafactor) and not weights_only:
            for name, statistics in adafactor_states(self._optimizer).items():
                yield from ((sharded_state.state_key(name, key), value) for key, value in statistics.items())

    def _load(self, folder: Path, *, weights_only: bool) -> None:
        shapes = {piece.name: piece.shape for _, placement in self._placements for piece in placement.pieces}
        contents = sharded_state.contents_of(folder, shapes)
        self._begin_loading()
        statistics: States = {}
        for partition, placement in self._placements:
            for pieces in _portions(placement.pieces):
                wanted = {sharded_state.weight_key(piece.name) for piece in pieces}
                if not weights_only:
                    wanted |= {
                        sharded_state.state_key(piece.name, key)
                        for piece in pieces
                        for key in sharded_state.states_of(contents, piece.name)
                    }
                tensors = {key: torch.empty(contents[key].shape, dtype=contents[key].dtype) for key in sorted(wanted)}
                sharded_state.read(folder, tensors)
                for piece in pieces:
                    _take(partition, piece, tensors[sharded_state.weight_key(piece.name)])
                    states = {
                        key: tensors[sharded_state.state_key(piece.name, key)]
                        for key in sharded_state.states_of(contents, piece.name)
                        if not weights_only
                    }
                    if isinstance(self._optimizer, Adafactor):
                        statistics[piece.name] = states
                        continue
                    for key, value in states.items():
                        self._take_state(partition, piece, key, value)
        if isinstance(self._optimizer, Adafactor) and not weights_only:
            put_adafactor_states(self._optimizer, {name: states for name, states in statistics.items() if states})
        self._end_loading()

    def _take_state(self, partition: torch.Tensor, piece: Piece, key: str, value: torch.Tensor) -> None:
        """Take one state of one parameter into that of the partition that holds a piece of it."""
        states = self._optimizer.state[partition]
        if key == "step":
            states[key] = value.reshape(()).to(partition.device if self._optimizer.defaults.get("fused") else "cpu")
            return
        if key not in states:
            states[key] = torch.zeros_like(partition, requires_grad=False)
        _take(states[key], piece, value)

    def _begin_loading(self) -> None:
        if self._stage == 3:
            self._zero.checkpoint_event_prologue()  # gathered parameters are given back

    def _end_loading(self) -> None:
        """Compute with the new weights."""
        if self._stage != 3:
            self._zero.update_lp_params()
            return
        for half, full in zip(
            self._zero.fp16_partitioned_groups_flat, self._zero.fp32_partitioned_groups_flat, strict=True
        ):
            half.data.copy_(full.data)
        self._zero.checkpoint_event_epilogue()


def _in_engine_precision(recipe: Recipe) -> Recipe:
    """Return the recipe with trained weights in bf16 where the engine computes in it, and keeps their fp32 copy."""
    if recipe.training.precision != "bf16":
        return recipe
    training = recipe.training.model_copy(update={"trained_weights": "bf16"})
    return recipe.model_copy(update={"training": training})


def _import_deepspeed(device: torch.device) -> Any:
    """Return deepspeed; it chooses its device when it is imported."""
    os.environ.setdefault("LOCAL_RANK", "0")  # a lone rank has none, and DeepSpeed insists on one
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        # It would be compiled now, on the node, and its ranks wait for each other in a busy loop: 50 times slower than
        # gloo where they share cores.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _put_together(local: torch.Tensor, piece: Piece, placement: Placement) -> torch.Tensor:
    """Return a parameter, or a state in its shape, whole, on all ranks."""
    whole_N = torch.zeros(math.prod(piece.shape), dtype=local.dtype, device=local.device)
    whole_N[piece.start : piece.stop] = local.view(-1)[piece.offset : piece.offset + piece.stop - piece.start]
    dist.all_reduce(whole_N, group=placement.group)
    return whole_N.view(piece.shape)


def _take(local: torch.Tensor, piece: Piece, whole: torch.Tensor) -> None:
    """Take this rank's piece of a parameter, or of a state in its shape."""
    taken = whole.reshape(-1)[piece.start : piece.stop]
    local.data.view(-1)[piece.offset : piece.offset + len(taken)].copy_(taken)


def _portions(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Split pieces into groups that are read at once."""
    portion: list[Piece] = []
    for piece in pieces:
        portion.append(piece)
        if sum(16 * math.prod(each.shape) for each in portion) > READ_BYTES:
            yield portion
            portion = []
    if portion:
        yield portion
