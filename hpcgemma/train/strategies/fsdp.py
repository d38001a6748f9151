"""Fully sharded data parallel, FSDP2: weights, gradients and optimizer states split over the ranks, by torch itself.

accelerate has a path to it, but on a CPU it silently becomes DDP (accelerate 1.15), so nothing of it could be tested
here; torch's own calls are few.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import Recipe
from hpcgemma.train.anatomy import decoder_layers
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.model import build_model
from hpcgemma.train.objective import Objective
from hpcgemma.train.parameters import plain_name, plain_names
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.strategies.native import NativeStrategy, images_to_share

_CPU = torch.device("cpu")


class FullyShardedStrategy(NativeStrategy):
    """A part of the model on each rank; each layer is gathered when it computes.

    Rank 0 alone reads the weights, into host memory, and hands out the parts: a node holds one copy, not one per rank.
    Weights in 4 bits are the exception: their quantization constants belong to each rank's own model, so each reads
    them.

    Args:
        recipe: What to train.
        prepared: The data, for the vocabulary.
        ranks: All ranks; at least two.
        device: What this rank computes on.
    """

    moves_together = True

    def __init__(self, recipe: Recipe, prepared: PreparedData, ranks: Ranks, device: torch.device) -> None:
        if ranks.world_size == 1:
            raise InputError(
                "strategy.name fsdp needs at least two processes, and there is one: there is nothing to shard over",
                "--set strategy.name=ddp, or more GPUs: --set resources.gpus_per_node=N",
            )
        spec, training = recipe.strategy, recipe.training
        half = torch.bfloat16 if training.precision == "bf16" else None
        whole: dict[str, torch.Tensor] = {}
        if recipe.model.quantization is not None:
            built = build_model(recipe, prepared, device, quant_storage=half or torch.float32)
        else:
            if ranks.is_first:
                source = build_model(recipe, prepared, device, weights_on=_CPU).model
                whole = {**plain_names(source), **dict(source.named_buffers())}
            built = build_model(recipe, prepared, device, empty=True)
        self.notes = built.notes
        model = built.model
        layers = decoder_layers(model, spec.layer_class)
        if training.compile:
            for layer in layers:
                layer.compile(dynamic=True)
        chosen = set(layers)
        if training.activation_checkpointing:
            # FSDP's own kind, around each layer: with the model's own, gathered weights can be freed while the
            # recomputation still needs them (transformers#34928).
            apply_activation_checkpointing(model, check_fn=lambda module: module in chosen)
            layers = decoder_layers(model, spec.layer_class)
        objective = Objective(model, training, autocast=True)
        mesh = _mesh(ranks, device, hybrid=spec.hybrid_shard)
        options: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32),
            "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda")
            if spec.offload_parameters
            else OffloadPolicy(),
        }
        for layer in layers:
            fully_shard(layer, reshard_after_forward=spec.reshard_after_forward, **options)
        fully_shard(objective, reshard_after_forward=False, **options)
        _prefetch([cast(FSDPModule, layer) for layer in layers], spec.prefetch_layers)
        if recipe.model.quantization is None:
            _hand_out(model, whole, mesh, device, to_host=spec.offload_parameters)
        super().__init__(model, recipe, images_to_share(model, prepared, moves_together=True))
        self.objective: nn.Module = objective
        self.evaluated: nn.Module = objective
        self._root = cast(FSDPModule, objective)

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[object]:
        """Return a context for one forward and backward pass."""
        # In each pass: between two, gradients that are not split yet would take as much memory as the whole model.
        self._root.set_is_last_backward(is_last)
        return nullcontext()

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Gather what belongs to no layer (embeddings, norm, head) while the bare model is called."""
        self._root.unshard()
        try:
            yield
        finally:
            self._root.reshard()


def _mesh(ranks: Ranks, device: torch.device, *, hybrid: bool) -> DeviceMesh:
    """Return all ranks in a row; for hybrid sharding, nodes x ranks of a node."""
    if not hybrid:
        return init_device_mesh(device.type, (ranks.world_size,), mesh_dim_names=("shard",))
    nodes = ranks.world_size // ranks.per_node
    return init_device_mesh(device.type, (nodes, ranks.per_node), mesh_dim_names=("replicate", "shard"))


def _prefetch(layers: list[FSDPModule], count: int) -> None:
    """Let each layer's weights be gathered while one of the ``count`` layers before it computes."""
    for place, layer in enumerate(layers):
        layer.set_modules_to_forward_prefetch(layers[place + 1 : place + 1 + count])
        layer.set_modules_to_backward_prefetch(layers[max(0, place - count) : place][::-1])


def _hand_out(
    model: nn.Module, whole: dict[str, torch.Tensor], mesh: DeviceMesh, device: torch.device, *, to_host: bool
) -> None:
    """Give each rank its part of the weights that rank 0 has.

    Args:
        model: The sharded model, on the meta device.
        whole: On rank 0: parameters and buffers by name.
        mesh: The ranks.
        device: What this rank computes on.
        to_host: Whether parameters live in host memory.
    """
    model.to_empty(device=_CPU if to_host else device)
    with torch.no_grad():
        for name, parameter in plain_names(model).items():
            local = cast(DTensor, parameter)
            full = whole.pop(name) if whole else torch.empty(local.shape, dtype=local.dtype, device=device)
            dealt = distribute_tensor(full.detach().to(device), mesh, local.placements, src_data_rank=0)
            local.to_local().copy_(dealt.to_local())
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for name, buffer in model.named_buffers():
        if whole:
            buffer.copy_(whole[plain_name(name)])
        dist.broadcast(buffer, src=0)
