"""Which samples a step takes, and which of them a rank takes: pure functions of seed and position.

The training samples (rows, or what they are packed into), put in a new order for each epoch, form one endless stream.
A step takes the next ``global_batch`` of it. So a position is one number, the samples consumed, and neither the ranks
nor the micro-batch change a step.

Where a mixture has parts with weights, each part has an endless stream of its own, all its samples in one order after
another. An epoch takes the next of each stream, as many as the weight says, and puts them in an order together.

Letters: N samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import TrainingSpec
from hpcgemma.train.data.samples import Part

Rows = NDArray[np.int64]
"""Numbers of rows or samples."""


def total_steps(samples: int, training: TrainingSpec, unit: str = "rows") -> int:
    """Return how many optimizer steps the training takes.

    Args:
        samples: Samples of an epoch.
        training: Epochs, global batch, and the limit of steps.
        unit: What samples are called.

    Raises:
        InputError: It is none.
    """
    # The small number makes 0.1 epochs of 320 rows two steps of 16, although 0.1 is a little less in binary.
    steps = math.floor(training.epochs * samples / training.global_batch + 1e-9)
    if training.max_steps is not None:
        steps = min(steps, training.max_steps)
    if steps < 1:
        raise InputError(
            f"training.epochs {training.epochs:g} of {samples} {unit} do not fill one training.global_batch of "
            f"{training.global_batch}",
            f"--set training.epochs={math.ceil(training.global_batch / samples)}",
        )
    return steps


def epoch_order(samples: int, seed: int, epoch: int) -> Rows:
    """Return the samples of one epoch in their order."""
    return _order(samples, seed, epoch)


class RowStream:
    """The stream of all epochs; it remembers the order of the newest epoch asked for.

    Args:
        parts: Parts of the training samples; a number is one part of weight 1.
        seed: Seed of the order.
    """

    def __init__(self, parts: int | Sequence[Part], seed: int) -> None:
        self._parts = (Part(0, parts),) if isinstance(parts, int) else tuple(parts)
        self._seed = seed
        self._per_epoch = sum(part.per_epoch for part in self._parts)
        self._epoch = -1
        self._order: Rows = np.empty(0, np.int64)

    def rows_at(self, position: int, count: int) -> Rows:
        """Return the ``count`` samples from a position (samples consumed) on."""
        pieces = []
        while count:
            epoch, offset = divmod(position, self._per_epoch)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self._order_of(epoch)
            piece = self._order[offset : offset + count]
            pieces.append(piece)
            position += len(piece)
            count -= len(piece)
        return np.concatenate(pieces)

    def _order_of(self, epoch: int) -> Rows:
        # Sorted before they are put in order: so parts of weight 1 have the order that all would have as one part.
        taken = [
            part.first + np.sort(_of_part(part, number, self._seed, epoch)) for number, part in enumerate(self._parts)
        ]
        return np.concatenate(taken)[epoch_order(self._per_epoch, self._seed, epoch)]


def _of_part(part: Part, number: int, seed: int, epoch: int) -> Rows:
    """Return what a part gives to an epoch, counted from the part's first sample."""
    position, left = epoch * part.per_epoch, part.per_epoch
    pieces = []
    while left:
        cycle, offset = divmod(position, part.count)
        # Whole orders are sorted afterwards: which one it is plays no part.
        whole = offset == 0 and left >= part.count
        # From 1 on, since NumPy's seeds end in as many zeros as one likes.
        order = np.arange(part.count) if whole else _order(part.count, seed, cycle, number + 1)
        piece = order[offset : offset + left]
        pieces.append(piece)
        position, left = position + len(piece), left - len(piece)
    return np.concatenate(pieces)


def _order(count: int, *seeds: int) -> Rows:
    """Return so many numbers in an order that the seeds decide.

    It sorts by the raw output of a PCG64 generator, whose stream NumPy keeps across versions (NEP 19); its
    ``permutation`` may change.
    """
    keys_N = np.random.PCG64(np.random.SeedSequence(seeds)).random_raw(count)
    return np.argsort(keys_N, kind="stable").astype(np.int64)


def micro_batches_of_rank(
    batch: Rows, lengths_N: NDArray[np.int64], *, rank: int, world_size: int, micro_batch: int
) -> list[Rows]:
    """Return a rank's share of a step's samples, one array for each forward pass.

    Samples are sorted by length, longest first, and dealt out in turn: rows that are padded together are alike, all
    ranks have the same work, and memory peaks in the first pass.

    Args:
        batch: The step's samples; a multiple of ``world_size * micro_batch`` of them.
        lengths_N: Tokens of each training sample.
        rank: Which rank.
        world_size: Ranks.
        micro_batch: Samples per rank and forward pass.
    """
    by_length = batch[np.argsort(-lengths_N[batch], kind="stable")]
    per_pass = world_size * micro_batch
    return [by_length[start : start + per_pass][rank::world_size] for start in range(0, len(batch), per_pass)]
