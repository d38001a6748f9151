"""Which elements of which parameters a rank holds under DeepSpeed's ZeRO, for an optimizer that must know.

ZeRO puts flat partitions in the place of the parameters. Stages 1 and 2 lay a group's parameters end to end, in an
order and with gaps of their own, and cut the whole evenly. Stage 3 cuts each parameter evenly and lays this rank's
parts end to end. Read from deepspeed 0.19's stage_1_and_2.py, bf16_optimizer.py and stage3.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor

from hpcgemma.train.pieces import Piece, Placement


def zero_placements(zero_optimizer: Any, names: Mapping[Tensor, str]) -> Iterator[tuple[Tensor, Placement]]:
    """Return the flat partitions that a ZeRO optimizer steps, and what each holds.

    Args:
        zero_optimizer: ``engine.optimizer``, just after ``deepspeed.initialize``.
        names: Name of each parameter of the model.

    Raises:
        TypeError: It is no ZeRO optimizer, or one of a version that we do not know.
    """
    kinds = (
        ("fp16_groups", "fp32_partitioned_groups_flat", None),  # stage 3
        ("bit16_groups", "single_partition_of_fp32_groups", "bit16_groups_flat"),  # stages 1 and 2
        ("bf16_groups", "fp32_groups_flat_partition", "bf16_groups_flat"),  # stage 1 of bf16 added up in fp32
    )
    for parameters_name, partitions_name, flat_name in kinds:
        if not hasattr(zero_optimizer, partitions_name):
            continue
        groups, partitions = getattr(zero_optimizer, parameters_name), getattr(zero_optimizer, partitions_name)
        for index, (parameters, partition) in enumerate(zip(groups, partitions, strict=True)):
            if flat_name is None:
                yield partition, _stage_3_placement(parameters, names)
            else:
                group, flat = zero_optimizer.real_dp_process_group[index], getattr(zero_optimizer, flat_name)[index]
                yield partition, _flat_placement(parameters, names, flat, partition.numel(), group)
        return
    raise TypeError(f"{type(zero_optimizer).__name__} is no ZeRO optimizer of a kind that we know")


def _flat_placement(
    parameters: Sequence[Any], names: Mapping[Tensor, str], flat: Tensor, length: int, group: dist.ProcessGroup
) -> Placement:
    """Return the placement of a partition of stage 1 or 2.

    The parameters are views of the flat tensor, so they tell by themselves where they begin, whatever round-robin
    order and alignment did.
    """
    partition_start = dist.get_rank(group) * length
    pieces = []
    for parameter in parameters:
        if parameter.untyped_storage().data_ptr() != flat.untyped_storage().data_ptr():
            raise TypeError(f"{names[parameter]} is not a view of its group's flat tensor")
        begin = parameter.storage_offset() - flat.storage_offset()
        start = min(max(partition_start - begin, 0), parameter.numel())
        stop = max(start, min(partition_start + length - begin, parameter.numel()))
        offset = max(begin - partition_start, 0) if start < stop else 0
        pieces.append(Piece(names[parameter], tuple(parameter.shape), start, stop, offset))
    return Placement(pieces, group)


def _stage_3_placement(parameters: Sequence[Any], names: Mapping[Tensor, str]) -> Placement:
    """Return the placement of a sub-group of stage 3; padding is at the end of a parameter's last part."""
    group = parameters[0].ds_process_group
    offset, pieces = 0, []
    for parameter in parameters:
        length = parameter.partition_numel()
        start = min(dist.get_rank(group) * length, parameter.ds_numel)
        stop = min(start + length, parameter.ds_numel)
        pieces.append(Piece(names[parameter], tuple(parameter.ds_shape), start, stop, offset))
        offset += length
    return Placement(pieces, group)
