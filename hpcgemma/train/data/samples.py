"""Samples: what a step counts. A sample is a row, or a pack of rows.

Letters: N rows, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcgemma.train.data.packing import Packs
from hpcgemma.train.data.token_rows import TokenRows


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a mixture: a range of samples."""

    first: int
    count: int
    weight: float = 1.0
    """How often each sample is taken in an epoch, on average."""

    @property
    def per_epoch(self) -> int:
        """Samples that it gives to an epoch."""
        return max(1, round(self.weight * self.count))


@dataclass(frozen=True, slots=True)
class Samples:
    """All training samples."""

    rows: TokenRows
    packs: Packs | None
    """None: each row is a sample."""
    lengths_S: NDArray[np.int64]
    """Tokens of each sample, without padding."""
    targets_S: NDArray[np.int64]
    """Tokens of each sample that are learned."""
    parts: tuple[Part, ...]
    """Together all samples, in order."""

    def __len__(self) -> int:
        return len(self.lengths_S)

    @classmethod
    def of(cls, rows: TokenRows, packs: Packs | None = None, parts: Sequence[Part] = ()) -> Samples:
        """Return the samples of rows.

        Args:
            rows: Training rows.
            packs: What they are packed into, if they are.
            parts: Of the mixture; none: all samples are one part of weight 1.
        """
        learned_N = learned_tokens(rows)
        lengths_S = rows.lengths_N if packs is None else packs.sums(rows.lengths_N)
        return cls(
            rows=rows,
            packs=packs,
            lengths_S=lengths_S,
            targets_S=learned_N if packs is None else packs.sums(learned_N),
            parts=tuple(parts) or (Part(0, len(lengths_S)),),
        )

    @property
    def is_packed(self) -> bool:
        """Whether a sample is a pack."""
        return self.packs is not None

    @property
    def unit(self) -> str:
        """What samples are called."""
        return "packs" if self.is_packed else "rows"

    @property
    def per_epoch(self) -> int:
        """Samples of an epoch."""
        return sum(part.per_epoch for part in self.parts)

    def rows_of(self, sample: int) -> NDArray[np.int64]:
        """Return the rows of a sample."""
        return np.asarray([sample], np.int64) if self.packs is None else self.packs.rows_of(sample)

    def longest(self, count: int) -> NDArray[np.int64]:
        """Return the samples with most tokens, longest first."""
        return np.argsort(-self.lengths_S, kind="stable")[:count].astype(np.int64)


def learned_tokens(rows: TokenRows) -> NDArray[np.int64]:
    """Return how many tokens of each row are learned; the first never is, since none is before it to predict it."""
    return rows.targets_N - rows.is_target_L[rows.starts_N]
