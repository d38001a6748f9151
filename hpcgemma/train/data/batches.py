"""Batches: rows padded to the longest among them, or packs of rows, and where their learned tokens are.

Rows are padded on the right and attention is causal, so no learned token ever sees padding and no attention mask is
needed: without one, the fastest kernels apply.

Nor is one for packs. transformers 5.23 keeps the rows of a pack apart where it is given neither a mask nor a cache, and
positions that restart with each row; a mask of ones, or a cache, would let them see each other.

Letters: B rows or packs of a batch, T tokens of the longest, N learned tokens of all rows, I images of C channels, H
high and W wide.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from hpcgemma.recipes.batch import accumulation_steps
from hpcgemma.recipes.types import Recipe
from hpcgemma.train.data.images import Images, RowImages
from hpcgemma.train.data.order import Rows, RowStream, micro_batches_of_rank
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.token_rows import TokenRows
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
    position_ids_BT: torch.Tensor | None = None
    """Position of each token in its row; None: nothing is packed."""
    pixel_values_ICHW: torch.Tensor | None = None
    """Images of all rows, in their order; None without any."""
    token_type_ids_BT: torch.Tensor | None = None
    """1 where a token stands for a piece of an image, else 0; None without images."""

    def to(self, device: torch.device) -> MicroBatch:
        """Return it on a device."""
        given: list[Any] = [None if each is None else each.to(device, non_blocking=True) for each in self]
        return MicroBatch(*given)


def collate(rows: TokenRows, chosen: Rows, pad_id: int) -> MicroBatch:
    """Pad rows to one length and find their learned tokens."""
    longest = max(len(rows.ids(int(row))) for row in chosen)
    return _laid_out(rows, [[int(row)] for row in chosen], _rounded_up(longest), pad_id)


def collate_packs(rows: TokenRows, packs: Sequence[Rows], width: int, pad_id: int) -> MicroBatch:
    """Lay the rows of each pack end to end and find their learned tokens.

    Positions restart at 0 with each row, and with the padding at the end.

    Args:
        rows: All rows.
        packs: The rows of each pack.
        width: Tokens that a pack holds; the batch is as wide, rounded up, however full the packs are.
        pad_id: Token of the padding.
    """
    whole = [[int(row) for row in pack] for pack in packs]
    position_ids_BT = np.zeros((len(whole), _rounded_up(width)), np.int64)
    for place, pack in enumerate(whole):
        end = 0
        for row in pack:
            length = int(rows.lengths_N[row])
            position_ids_BT[place, end : end + length] = np.arange(length)
            end += length
        position_ids_BT[place, end:] = np.arange(position_ids_BT.shape[1] - end)
    batch = _laid_out(rows, whole, position_ids_BT.shape[1], pad_id)
    return batch._replace(position_ids_BT=torch.from_numpy(position_ids_BT))


def _laid_out(rows: TokenRows, lines: Sequence[Sequence[int]], width: int, pad_id: int) -> MicroBatch:
    ids_BT = np.full((len(lines), width), pad_id, np.int64)
    is_target_BT = np.zeros((len(lines), width), np.bool_)
    for place, line in enumerate(lines):
        end = 0
        for row in line:
            ids_T = rows.ids(row)
            ids_BT[place, end : end + len(ids_T)] = ids_T
            is_target_BT[place, end : end + len(ids_T)] = rows.is_target(row)
            is_target_BT[place, end] = False  # no token of its row is before it that could predict it
            end += len(ids_T)
    targets_N = np.flatnonzero(is_target_BT)
    batch = MicroBatch(
        torch.from_numpy(ids_BT),
        torch.from_numpy(targets_N - 1),
        torch.from_numpy(ids_BT.ravel()[targets_N]),
    )
    return batch if rows.images is None else _with_images(batch, rows.images, [row for line in lines for row in line])


def _with_images(batch: MicroBatch, shown: RowImages, rows: Sequence[int]) -> MicroBatch:
    numbers = [number for row in rows for number in shown.of(row)]
    if not numbers:
        return batch
    return batch._replace(
        pixel_values_ICHW=torch.from_numpy(shown.images.pixels(numbers)),
        token_type_ids_BT=(batch.ids_BT == shown.images.soft_token).long(),
    )


def with_blank(batch: MicroBatch, images: Images) -> MicroBatch:
    """Return a batch that shows an image: its own, or a blank one behind the tokens of its first row.

    Ranks that gather weights together, or share gradients of a vision tower, must all go through it. No learned token
    sees the blank image, since none is behind it, so it changes no loss and no gradient.

    Args:
        batch: A batch on the host.
        images: How an image becomes pixels, and how many tokens stand for it.
    """
    if batch.pixel_values_ICHW is not None:
        return batch
    rows, width = batch.ids_BT.shape
    more = _rounded_up(images.tokens)
    ids_BT = functional.pad(batch.ids_BT, (0, more))
    ids_BT[0, width : width + images.tokens] = images.soft_token
    positions = batch.position_ids_BT
    if positions is not None:
        positions = torch.cat([positions, torch.arange(more).expand(rows, -1)], dim=1)
    return batch._replace(
        ids_BT=ids_BT,
        positions_N=batch.positions_N // width * (width + more) + batch.positions_N % width,
        position_ids_BT=positions,
        pixel_values_ICHW=torch.from_numpy(images.blank()),
        token_type_ids_BT=(ids_BT == images.soft_token).long(),
    )


def _rounded_up(length: int) -> int:
    return -(-length // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


class TrainingBatches(Dataset[MicroBatch]):
    """All micro-batches of one rank, numbered from the training's first step on.

    Args:
        prepared: The data.
        recipe: Global batch, micro-batch and seed.
        rank: This rank.
        world_size: Ranks.
    """

    def __init__(self, prepared: PreparedData, recipe: Recipe, *, rank: int, world_size: int) -> None:
        self.samples, self._pad_id = prepared.samples, prepared.special["pad"]
        self._capacity = recipe.data.max_length
        self._stream = RowStream(self.samples.parts, recipe.training.seed)
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
            self.samples.lengths_S,
            rank=self._rank,
            world_size=self._world_size,
            micro_batch=self._micro_batch,
        )
        return self.collate(mine[place])

    def collate(self, chosen: Rows) -> MicroBatch:
        """Return samples as a batch."""
        samples = self.samples
        if not samples.is_packed:
            return collate(samples.rows, chosen, self._pad_id)
        packs = [samples.rows_of(int(sample)) for sample in chosen]
        return collate_packs(samples.rows, packs, self._capacity, self._pad_id)

    def rows_of_step(self, step: int) -> Rows:
        """Return the samples of a step, of all ranks: rows, or packs."""
        return self._stream.rows_at(step * self.global_batch, self.global_batch)

    def tokens_of_step(self, step: int) -> tuple[int, int]:
        """Return the tokens of a step's samples, and how many of them are learned, over all ranks."""
        chosen = self.rows_of_step(step)
        return int(self.samples.lengths_S[chosen].sum()), int(self.samples.targets_S[chosen].sum())

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
