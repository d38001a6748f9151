"""Which rows a step takes, and which of them a rank takes: pure functions of seed and position.

The training rows, put in a new order for each epoch, form one endless stream. A step takes the next ``global_batch``
rows of it. So a position is one number, the rows consumed, and neither the ranks nor the micro-batch change a step.

Letters: N rows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import TrainingSpec

Rows = NDArray[np.int64]
"""Row numbers."""


def total_steps(rows: int, training: TrainingSpec) -> int:
    """Return how many optimizer steps the training takes.

    Args:
        rows: Training rows.
        training: Epochs, global batch, and the limit of steps.

    Raises:
        InputError: It is none.
    """
    # The small number makes 0.1 epochs of 320 rows two steps of 16, although 0.1 is a little less in binary.
    steps = math.floor(training.epochs * rows / training.global_batch + 1e-9)
    if training.max_steps is not None:
        steps = min(steps, training.max_steps)
    if steps < 1:
        raise InputError(
            f"training.epochs {training.epochs:g} of {rows} rows do not fill one training.global_batch of "
            f"{training.global_batch}",
            f"--set training.epochs={math.ceil(training.global_batch / rows)}",
        )
    return steps


def epoch_order(rows: int, seed: int, epoch: int) -> Rows:
    """Return the rows of one epoch in their order.

    It sorts by the raw output of a PCG64 generator, whose stream NumPy keeps across versions (NEP 19); its
    ``permutation`` may change.
    """
    keys_N = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(rows)
    return np.argsort(keys_N, kind="stable").astype(np.int64)


class RowStream:
    """The stream of all epochs; it remembers the order of the newest epoch asked for.

    Args:
        rows: Training rows.
        seed: Seed of the order.
    """

    def __init__(self, rows: int, seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._epoch = -1
        self._order: Rows = np.empty(0, np.int64)

    def rows_at(self, position: int, count: int) -> Rows:
        """Return the ``count`` rows from a position (rows consumed) on."""
        pieces = []
        while count:
            epoch, offset = divmod(position, self._rows)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, epoch_order(self._rows, self._seed, epoch)
            piece = self._order[offset : offset + count]
            pieces.append(piece)
            position += len(piece)
            count -= len(piece)
        return np.concatenate(pieces)


def micro_batches_of_rank(
    batch: Rows, lengths_N: NDArray[np.int64], *, rank: int, world_size: int, micro_batch: int
) -> list[Rows]:
    """Return a rank's share of a step's rows, one array for each forward pass.

    Rows are sorted by length, longest first, and dealt out in turn: rows that are padded together are alike, all
    ranks have the same work, and memory peaks in the first pass.

    Args:
        batch: The step's rows; a multiple of ``world_size * micro_batch`` of them.
        lengths_N: Tokens of each training row.
        rank: Which rank.
        world_size: Ranks.
        micro_batch: Rows per rank and forward pass.
    """
    by_length = batch[np.argsort(-lengths_N[batch], kind="stable")]
    per_pass = world_size * micro_batch
    return [by_length[start : start + per_pass][rank::world_size] for start in range(0, len(batch), per_pass)]
