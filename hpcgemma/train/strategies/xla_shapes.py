"""The few shapes that batches have under XLA, which compiles a program for each. Without torch_xla.

Letters: B rows, T positions, N learned tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch.nn import functional

from hpcgemma.recipes.types import TrainingSpec
from hpcgemma.train.data.batches import MicroBatch
from hpcgemma.train.data.prepared import PreparedData

LANES = 128
"""Lengths are multiples of this: registers of a TPU are so wide, and what is shorter is padded there."""

NO_LABEL = -1
"""Label of a learned token that is none, and only fills a batch up."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """What batches are filled up to. All ranks compute the same, since they have the same data."""

    width: int
    """Positions of a row."""
    targets: Mapping[int, int]
    """For each number of rows, fewest first, the learned tokens."""

    @classmethod
    def of(cls, prepared: PreparedData, training: TrainingSpec) -> Shapes:
        """Return the smallest that hold every batch of a training and its evaluations."""
        both = (prepared.train, prepared.eval)
        most_first = -np.sort(-np.concatenate([rows.targets_N for rows in both]))
        return cls(
            _rounded_up(max(int(rows.lengths_N.max()) for rows in both)),
            {
                rows: _rounded_up(int(most_first[:rows].sum()))
                for rows in sorted({training.micro_batch, training.eval_micro_batch})
            },
        )

    def fill(self, batch: MicroBatch) -> MicroBatch:
        """Return a batch filled up with rows, positions and learned tokens that do not count."""
        rows, width = batch.ids_BT.shape
        wanted = next(number for number in self.targets if number >= rows)
        missing = self.targets[wanted] - len(batch.labels_N)
        row_N, position_N = batch.positions_N // width, batch.positions_N % width
        return batch._replace(
            # Any token will do: no learned token sees those behind it, or in another row.
            ids_BT=functional.pad(batch.ids_BT, (0, self.width - width, 0, wanted - rows)),
            positions_N=functional.pad(row_N * self.width + position_N, (0, missing)),
            labels_N=functional.pad(batch.labels_N, (0, missing), value=NO_LABEL),
        )

    def __str__(self) -> str:
        each = " and ".join(f"{rows} x {self.width} with {count} learned" for rows, count in self.targets.items())
        return f"batches are filled up to {each} tokens, so that XLA compiles once"


def _rounded_up(length: int) -> int:
    return -(-length // LANES) * LANES
