"""Batches: rows padded to the longest among them, and where their learned tokens are.

Rows are padded on the right and attention is causal, so no learned token ever sees padding and no attention mask is
needed: without one, the fastest kernels apply.

Letters: B rows of a batch, T tokens of the longest, N learned tokens of all rows.
"""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hpcgemma.recipes.batch import accumulation_steps
from hpcgemma.recipes.types import Recipe
from hpcgemma.train.data.order import Rows, RowStream, micro_batches_of_rank
from hpcgemma.train.data.prepared import PreparedData, TokenRows
from hpcgemma.train.signals import stop_signals

LENGTH_MULTIPLE = 8
"""Rows are padded to a multiple of this, which tensor cores like."""


class MicroBatch(NamedTuple):
    """The rows of one forward pass."""

    ids_BT: torch.Tensor
    positions_N: torch.Tensor
    """Where a learned token is predicted: row x T + position of the token before it."""
    labels_N: torch.Tensor
    """The token that is to be predicted there."""

    def to(self, device: torch.device) -> MicroBatch:
        """Return it on a device."""
        return MicroBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


def collate(rows: TokenRows, chosen: Rows, pad_id: int) -> MicroBatch:
    """Pad rows to one length and find their learned tokens."""
    longest = max(len(rows.ids(int(row))) for row in chosen)
    width = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    ids_BT = np.full((len(chosen), width), pad_id, np.int64)
    is_target_BT = np.zeros((len(chosen), width), np.bool_)
    for place, row in enumerate(chosen):
        ids_T = rows.ids(int(row))
        ids_BT[place, : len(ids_T)] = ids_T
        is_target_BT[place, : len(ids_T)] = rows.is_target(int(row))
    is_target_BT[:, 0] = False  # no token is before it that could predict it
    targets_N = np.flatnonzero(is_target_BT)
    return MicroBatch(
        torch.from_numpy(ids_BT),
        torch.from_numpy(targets_N - 1),
        torch.from_numpy(ids_BT.ravel()[targets_N]),
    )


class TrainingBatches(Dataset[MicroBatch]):
    """All micro-batches of one rank, numbered from the training's first step on.

    Args:
        prepared: The data.
        recipe: Global batch, micro-batch and seed.
        rank: This rank.
        world_size: Ranks.
    """

    def __init__(self, prepared: PreparedData, recipe: Recipe, *, rank: int, world_size: int) -> None:
        self._rows, self._pad_id = prepared.train, prepared.special["pad"]
        self._lengths_N = prepared.train.lengths_N
        self._stream = RowStream(len(prepared.train), recipe.training.seed)
        self.global_batch = recipe.training.global_batch
        self._micro_batch = recipe.training.micro_batch
        self._rank, self._world_size = rank, world_size
        self.per_step = accumulation_steps(
            global_batch=self.global_batch, micro_batch=self._micro_batch, world_size=world_size
        )

    def __getitem__(self, number: int) -> MicroBatch:
        step, place = divmod(number, self.per_step)
        mine = micro_batches_of_rank(
            self.rows_of_step(step),
            self._lengths_N,
            rank=self._rank,
            world_size=self._world_size,
            micro_batch=self._micro_batch,
        )
        return collate(self._rows, mine[place], self._pad_id)

    def rows_of_step(self, step: int) -> Rows:
        """Return the rows of a step, of all ranks."""
        return self._stream.rows_at(step * self.global_batch, self.global_batch)

    def tokens_of_step(self, step: int) -> tuple[int, int]:
        """Return the tokens of a step's rows, and how many of them are learned, over all ranks."""
        rows = self.rows_of_step(step)
        return int(self._lengths_N[rows].sum()), int(self._rows.targets_N[rows].sum())

    def from_step(self, step: int, total_steps: int, *, workers: int, pin: bool) -> DataLoader[MicroBatch]:
        """Return the micro-batches from a step on, collated ahead by worker processes where there are any."""
        return DataLoader(
            self,
            batch_size=None,
            sampler=range(step * self.per_step, total_steps * self.per_step),
            num_workers=workers,
            worker_init_fn=ignore_stop_signals,
            pin_memory=pin and torch.cuda.is_available(),
            generator=torch.Generator(),  # else it would draw from the generator that dropout uses
        )


def ignore_stop_signals(worker: int) -> None:
    """Make a worker process deaf to stop signals, which Slurm and terminals send to all processes of a job.

    The rank ends its workers itself. torch gives each worker a SIGTERM handler of its own, under which it would die
    and take the rank with it in the middle of a step.
    """
    for number in stop_signals(os.environ):
        signal.signal(number, signal.SIG_IGN)
