"""Packing: whole rows, laid end to end into packs of at most the length that the model takes.

No row is cut. The rows of all the data are packed at once by best-fit-decreasing: longest first, each into the pack
with the least room that still holds it. Source: Ding et al. 2024, Fewer Truncations Improve Language Modeling,
arXiv:2404.10830.

Letters: N rows, S packs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FIELDS = ("rows_N", "offsets_S1")


@dataclass(frozen=True, slots=True)
class Packs:
    """Which rows lie in which pack."""

    rows_N: NDArray[np.int64]
    """The rows of each pack, end to end; ascending within a pack."""
    offsets_S1: NDArray[np.int64]
    """Where in ``rows_N`` each pack begins, and where the last one ends."""

    def __len__(self) -> int:
        return len(self.offsets_S1) - 1

    def rows_of(self, pack: int) -> NDArray[np.int64]:
        """Return the rows of a pack."""
        return self.rows_N[self.offsets_S1[pack] : self.offsets_S1[pack + 1]]

    def sums(self, values_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Add up a number of each row over the rows of each pack."""
        if not len(self):
            return np.empty(0, np.int64)
        return np.add.reduceat(values_N[self.rows_N], self.offsets_S1[:-1])

    def save(self, folder: Path, name: str) -> None:
        """Write them into a folder."""
        for field in _FIELDS:
            np.save(_file(folder, name, field), getattr(self, field))

    @classmethod
    def open(cls, folder: Path, name: str) -> Packs | None:
        """Map packs into memory; None where the folder has none of that name."""
        files = [_file(folder, name, field) for field in _FIELDS]
        if not all(file.exists() for file in files):
            return None
        return cls(*(np.load(file, mmap_mode="r") for file in files))


@dataclass(frozen=True, slots=True)
class PackingCounts:
    """What packing came to."""

    packs: int
    rows: int
    tokens: int
    density: float
    """Share of the packs' room that tokens fill."""


def best_fit(lengths_N: NDArray[np.int64], capacity: int) -> Packs:
    """Pack rows by best-fit-decreasing.

    Rows of one length are placed together: the pack with the least room takes as many of them as it holds, and packs
    with the same room are alike. So the work grows with pairs of a length and a room that meet, of which there are
    never more than rows; one pass over the rows in compiled code is all that is left per row.

    Args:
        lengths_N: Tokens of each row.
        capacity: Tokens that a pack holds.

    Raises:
        ValueError: A row is longer than a pack.
    """
    longest = int(lengths_N.max(initial=0))
    if longest > capacity:
        raise ValueError(f"a row of {longest} tokens does not fit into a pack of {capacity}")
    short_N = np.maximum(lengths_N, 1).astype(np.int32)  # all of a file's rows are in memory here: few bytes each
    by_length = np.argsort(-short_N, kind="stable")
    count_by_size = np.bincount(short_N)
    sizes = np.flatnonzero(count_by_size)
    packs_of: list[list[int]] = [[] for _ in range(capacity + 1)]  # packs by their room
    rooms = 0  # bit r is set where a pack has room r
    made = 0
    placed_N = np.empty(len(lengths_N), np.int32)  # the pack of each row of by_length
    done = 0
    for size, count in zip(sizes[::-1].tolist(), count_by_size[sizes[::-1]].tolist(), strict=True):
        left = count
        while left:
            wide_enough = rooms >> size
            if wide_enough:
                room = size + (wide_enough & -wide_enough).bit_length() - 1
                packs = packs_of[room]
            else:
                room = capacity
                packs = list(range(made, made + -(-left // (capacity // size))))
                made += len(packs)
            each = room // size
            full = min(len(packs), left // each)
            taken, packs = packs[:full], packs[full:]
            placed_N[done : done + full * each] = taken if each == 1 else np.repeat(taken, each)
            done += full * each
            _put(packs_of, room - each * size, taken)
            left -= full * each
            if left and packs:
                placed_N[done : done + left] = packs[0]
                done += left
                _put(packs_of, room - left * size, packs[:1])
                rooms |= 1 << (room - left * size)
                packs, left = packs[1:], 0
            if taken:
                rooms |= 1 << (room - each * size)
            if wide_enough:
                packs_of[room] = packs
                if not packs:
                    rooms &= ~(1 << room)
    pack_N = np.empty(len(lengths_N), np.int32)
    pack_N[by_length] = placed_N
    del by_length, placed_N, short_N
    offsets_S1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(pack_N, minlength=made), dtype=np.int64)])
    return Packs(np.argsort(pack_N, kind="stable").astype(np.int64, copy=False), offsets_S1)


def pack_parts(
    lengths_N: NDArray[np.int64], row_parts: Sequence[tuple[int, int]], capacity: int
) -> tuple[Packs, list[tuple[int, int]]]:
    """Pack the parts of a mixture, each for itself.

    Args:
        lengths_N: Tokens of each row, of all parts.
        row_parts: First row and number of rows of each part.
        capacity: Tokens that a pack holds.

    Returns:
        The packs of all parts, and first pack and number of packs of each part.
    """
    rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    offsets: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
    ranges: list[tuple[int, int]] = []
    packs = end = 0
    for first, count in row_parts:
        part = best_fit(lengths_N[first : first + count], capacity)
        rows.append(part.rows_N + first)
        offsets.append(part.offsets_S1[1:] + end)
        ranges.append((packs, len(part)))
        packs, end = packs + len(part), end + count
    return Packs(np.concatenate(rows), np.concatenate(offsets)), ranges


def packing_counts(packs: Packs, lengths_N: NDArray[np.int64], capacity: int) -> PackingCounts:
    """Return how many packs there are and how full they are."""
    tokens = int(lengths_N[packs.rows_N].sum())
    return PackingCounts(len(packs), len(packs.rows_N), tokens, tokens / max(len(packs) * capacity, 1))


def padding_share(lengths_N: NDArray[np.int64], batches: Iterable[NDArray[np.int64]]) -> float:
    """Return the share of padding in batches of unpacked rows, each padded to its longest."""
    tokens = room = 0
    for batch in batches:
        lengths = lengths_N[batch]
        tokens, room = tokens + int(lengths.sum()), room + int(lengths.max()) * len(batch)
    return 1 - tokens / max(room, 1)


def _put(packs_of: list[list[int]], room: int, packs: list[int]) -> None:
    packs_of[room] += packs


def _file(folder: Path, name: str, field: str) -> Path:
    return folder / f"{name}.packs_{field}.npy"
