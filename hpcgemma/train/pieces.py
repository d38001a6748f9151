"""The part of a parameter that a rank holds: a range of its elements in row-major order, and rectangles of that.

Shapes: O and I are the rows and columns of a parameter as a matrix, R and C those of a block of it, N the elements
that this rank holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

BLOCK_ELEMENTS = 2**25
"""Elements worked on at once: 128 MiB in fp32, where a large vocabulary's embedding has 6 GiB."""


@dataclass(frozen=True, slots=True)
class Block:
    """A rectangle of a parameter as a matrix."""

    rows: slice
    """Its rows in the matrix."""
    columns: slice
    """Its columns in the matrix."""
    elements: slice
    """Its elements in the flattened local tensor."""

    def of(self, flat_N: Tensor) -> Tensor:
        """Return the block of a flattened local tensor, a view of shape [R, C]."""
        return flat_N[self.elements].view(self.rows.stop - self.rows.start, -1)


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of one parameter that a local tensor holds; empty where ``start == stop``."""

    name: str
    """The parameter's name, the same on all ranks."""
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    start: int
    """First element, counted in the flattened parameter."""
    stop: int
    """One after the last element."""
    offset: int = 0
    """Where the first element is in the flattened local tensor."""

    @property
    def rows(self) -> int:
        """Return O: a vector, which is not factored, is a matrix of one row."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def columns(self) -> int:
        """Return I."""
        return math.prod(self.shape[1:] if len(self.shape) > 1 else self.shape)

    def blocks(self) -> Iterator[Block]:
        """Cut the piece into rectangles: the end of a row, whole rows, the beginning of a row."""
        place = self.start
        while place < self.stop:
            row, column = divmod(place, self.columns)
            whole_rows = 0 if column else (self.stop - place) // self.columns
            rows = max(1, min(whole_rows, BLOCK_ELEMENTS // self.columns))
            columns = self.columns if whole_rows else min(self.stop - place, self.columns - column)
            first = self.offset + place - self.start
            yield Block(
                rows=slice(row, row + rows),
                columns=slice(column, column + columns),
                elements=slice(first, first + rows * columns),
            )
            place += rows * columns


@dataclass(frozen=True, slots=True)
class Placement:
    """What a local tensor holds, and who holds the rest."""

    pieces: Sequence[Piece]
    """Its pieces; on every rank of ``group`` those of the same parameters in the same order, some of them empty."""
    group: dist.ProcessGroup | None
    """The ranks that share these parameters; None: this rank has them whole."""


def default_placement(tensor: Tensor, name: str) -> Placement:
    """Return the placement of a whole tensor or a DTensor.

    Raises:
        ValueError: The DTensor is sharded other than once and by its first dimension.
    """
    shape = tuple(tensor.shape)
    if not isinstance(tensor, DTensor):
        return Placement([Piece(name, shape, 0, tensor.numel())], None)
    mesh, placements = tensor.device_mesh, tensor.placements
    sharded = [dimension for dimension, each in enumerate(placements) if not each.is_replicate()]
    if not sharded:
        return Placement([Piece(name, shape, 0, tensor.numel())], None)
    if len(sharded) > 1 or placements[sharded[0]] != Shard(0):
        raise ValueError(f"{name} is placed as {placements}; Adafactor needs one Shard(0), beside copies")
    local_shape, offsets = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    start = min(offsets[0] * math.prod(shape[1:]), tensor.numel())
    return Placement([Piece(name, shape, start, start + math.prod(local_shape))], mesh.get_group(sharded[0]))
