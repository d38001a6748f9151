"""Adafactor that takes the same steps however its parameters are sharded (Shazeer and Stern 2018).

Adafactor keeps of a matrix's second moment one number per row and one per column. Under every sharding we support, a
rank holds of each parameter a range of its elements in row-major order: all of it under DDP, whole rows under FSDP2,
anything under ZeRO, which cuts rows in the middle. A range adds its share to the sums of rows and columns, one
all-reduce completes them, and a second one completes the norms that clipping needs. So the statistics are the same on
every rank: rank 0 saves them whole, and they load under any other sharding.

The updates are those of ``transformers.optimization.Adafactor`` with ``scale_parameter=False, relative_step=False,
warmup_init=False, beta1=None``, with one exception: a parameter of more than two dimensions, such as a convolution's
kernel, is factored as the matrix of its first dimension by all others, not by its last two dimensions.

Shapes: O and I are the rows and columns of a parameter as a matrix (a vector is one row), R and C those of a block of
it, N the elements that this rank holds, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from hpcgemma.train.pieces import Block, Piece, Placement, default_placement


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece in the course of a step."""

    piece: Piece
    options: Mapping[str, Any]
    weight_N: Tensor
    grad_N: Tensor
    statistics: dict[str, Any]

    def updates(self, row_factor_O: Tensor, column_factor_I: Tensor) -> Iterator[tuple[Block, Tensor]]:
        """Return the update of each block in fp32, of shape [R, C], before clipping."""
        for block in self.piece.blocks():
            factor_RC = row_factor_O[block.rows].unsqueeze(1) * column_factor_I[block.columns]
            yield block, factor_RC.mul_(block.of(self.grad_N))


class Adafactor(torch.optim.Optimizer):
    """Adafactor with a learning rate from outside, over parameters in any sharding.

    A parameter is a plain tensor, which is whole, or a DTensor in ``Shard(0)``. Any other local tensor, such as a flat
    partition of ZeRO, is described by ``place`` before the first step. A parameter without a gradient is skipped, and
    so it must be without one on all ranks; FSDP2 and ZeRO see to that, ZeRO by a gradient of zeros.

    Args:
        params: Parameters or groups of them, as of any optimizer of torch.
        names: Name of each parameter; the statistics are saved by it.
        lr: Learning rate; ``param_groups[i]["lr"]`` changes it.
        weight_decay: Share of a weight, times the learning rate, that a step takes off before its update.
        clip_threshold: Root mean square to which a parameter's update is clipped.
        decay_exponent: At step t the second moment decays by ``1 - t ** -decay_exponent``.
        eps: Added to each squared gradient.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        names: Mapping[Tensor, str],
        *,
        lr: float,
        weight_decay: float = 0.0,
        clip_threshold: float = 1.0,
        decay_exponent: float = 0.8,
        eps: float = 1e-30,
    ) -> None:
        options = {"clip_threshold": clip_threshold, "decay_exponent": decay_exponent, "eps": eps}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay} | options)
        self._names = dict(names)
        self._placements: dict[Tensor, Placement] = {}
        # Not in torch's `state`: DeepSpeed takes a tensor there for a part of its flat partition.
        self._statistics: dict[str, dict[str, Any]] = {}

    def place(self, tensor: Tensor, placement: Placement) -> None:
        """Describe what a local tensor of ``param_groups`` holds.

        Raises:
            ValueError: A piece is outside its parameter or the tensor.
        """
        for piece in placement.pieces:
            length = piece.stop - piece.start
            is_within_parameter = 0 <= piece.start <= piece.stop <= piece.rows * piece.columns
            if not is_within_parameter or not 0 <= piece.offset <= tensor.numel() - length:
                raise ValueError(f"{piece} does not fit into a tensor of {tensor.numel()} elements")
        self._placements[tensor] = placement

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; all ranks of a placement's group must take it together."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parts_of_group: dict[dist.ProcessGroup | None, list[_Part]] = {}
        for options in self.param_groups:
            for parameter in options["params"]:
                if parameter.grad is None:
                    continue
                placement = self._placement(parameter)
                weight_N, grad_N = _local(parameter).view(-1), _local(parameter.grad).reshape(-1)
                parts_of_group.setdefault(placement.group, []).extend(
                    _Part(piece, options, weight_N, grad_N, self._statistics_of(piece, weight_N.device))
                    for piece in placement.pieces
                )
        for group, parts in parts_of_group.items():
            if parts:
                _update(parts, group)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the options, and under ``statistics`` what has been learned of each parameter by its name."""
        return {**super().state_dict(), "statistics": self._statistics}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the statistics, of whatever sharding; options stay as they are.

        Raises:
            ValueError: They are those of other parameters.
        """
        statistics = state_dict["statistics"]
        unknown = sorted(statistics.keys() - set(self._names.values()))
        if unknown:
            raise ValueError(f"the statistics are of other parameters: {unknown[0]} is not among ours")
        self._statistics = {
            name: {key: _whole_copy(value) if isinstance(value, Tensor) else value for key, value in each.items()}
            for name, each in statistics.items()
        }

    def _placement(self, tensor: Tensor) -> Placement:
        if tensor not in self._placements:
            if tensor not in self._names:
                raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has neither a name nor a placement")
            self.place(tensor, default_placement(tensor, self._names[tensor]))
        return self._placements[tensor]

    def _statistics_of(self, piece: Piece, device: torch.device) -> dict[str, Any]:
        """Return what is known of a parameter, on its device: ``step``, ``row_O`` and ``column_I``."""
        if piece.name not in self._statistics:
            self._statistics[piece.name] = {
                "step": 0,
                "row_O": torch.zeros(piece.rows),
                "column_I": torch.zeros(piece.columns),
            }
        statistics = self._statistics[piece.name]
        for key in ("row_O", "column_I"):
            statistics[key] = statistics[key].to(device)
        return statistics


def _update(parts: Sequence[_Part], group: dist.ProcessGroup | None) -> None:
    """Take one step with pieces of the same group of ranks."""
    device = parts[0].weight_N.device
    sizes = [size for part in parts for size in (part.piece.rows, part.piece.columns)]
    sums = torch.zeros(sum(sizes), device=device)
    sums_of_part = torch.split(sums, sizes)
    rows, columns = sums_of_part[::2], sums_of_part[1::2]
    for part, row_O, column_I in zip(parts, rows, columns, strict=True):
        for block in part.piece.blocks():
            square_RC = block.of(part.grad_N).float().square()
            row_O[block.rows] += square_RC.sum(1)
            column_I[block.columns] += square_RC.sum(0)
    _all_reduce(sums, group)
    factors = [_advance(*each) for each in zip(parts, rows, columns, strict=True)]

    norm_P = torch.zeros(len(parts), device=device)
    for part, each, norm in zip(parts, factors, norm_P, strict=True):
        for _, update_RC in part.updates(*each):
            norm += update_RC.square_().sum()
    _all_reduce(norm_P, group)
    norm_P.sqrt_()

    for part, each, norm in zip(parts, factors, norm_P, strict=True):
        rate, decay = part.options["lr"], part.options["weight_decay"]
        root_mean_square = norm / math.sqrt(part.piece.rows * part.piece.columns)
        excess = (root_mean_square / part.options["clip_threshold"]).clamp_(min=1.0)
        for block, update_RC in part.updates(*each):
            weight_RC = block.of(part.weight_N)
            new_weight_RC = weight_RC.float()  # itself where it is in fp32
            if decay:
                new_weight_RC.add_(new_weight_RC, alpha=-decay * rate)
            new_weight_RC.sub_(update_RC.div_(excess).mul_(rate))
            if new_weight_RC is not weight_RC:
                weight_RC.copy_(new_weight_RC)


def _advance(part: _Part, row_O: Tensor, column_I: Tensor) -> tuple[Tensor, Tensor]:
    """Take the sums of squares into the statistics and return the factors of the update, for rows and columns."""
    statistics, eps = part.statistics, part.options["eps"]
    statistics["step"] += 1
    decay = 1.0 - math.pow(statistics["step"], -part.options["decay_exponent"])
    average_O, average_I = statistics["row_O"], statistics["column_I"]
    average_O.mul_(decay).add_(row_O.div_(part.piece.columns).add_(eps), alpha=1.0 - decay)
    average_I.mul_(decay).add_(column_I.div_(part.piece.rows).add_(eps), alpha=1.0 - decay)
    return (average_O / average_O.mean()).rsqrt_(), average_I.rsqrt()


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _whole_copy(tensor: Tensor) -> Tensor:
    """Return a copy, whole also where a reader of checkpoints sharded a vector's statistics as it does the vector."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def _all_reduce(tensor: Tensor, group: dist.ProcessGroup | None) -> None:
    """Sum a tensor over a group; through the accelerator where offloaded parameters are on a host that NCCL ignores."""
    if group is None:
        return
    if tensor.device.type in dist.get_backend_config(group):
        dist.all_reduce(tensor, group=group)
        return
    moved = tensor.to(torch.accelerator.current_accelerator())
    dist.all_reduce(moved, group=group)
    tensor.copy_(moved)
