"""Which of all rows are trained on, and which are held out: decided from their index, some rows at a time.

The index is a file, and so is all that grows with it: what must be compared with each other is first put into buckets.
So memory stays flat however many rows there are.

Letters: N rows, those of the whole index or of a block of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcgemma.recipes.types import DataSpec
from hpcgemma.rows.bad_rows import BadRow
from hpcgemma.train.data.bad_row_report import BadRowReport
from hpcgemma.train.data.buckets import MOST_BUCKETS, Buckets, bucket_of
from hpcgemma.train.data.token_rows import IMAGE_COLUMNS, TOKEN_COLUMNS, IndexWriter, SetCounts
from hpcgemma.train.data.tokenizing import HELD_OUT, INDEX, SourceFile, held_out_limit

ROWS_AT_ONCE = 1 << 16
"""Rows in memory at once; more where there are over eight million, since the buckets are bounded."""

COPY = np.dtype([("row", np.int64), ("first_file", np.int32), ("first_line", np.int64)])
"""A row that is left out, and where the row is whose copy it is."""

_KEY = np.dtype(
    [
        ("digest", np.uint64),
        ("low", np.uint64),
        ("is_given", np.bool_),  # as held out
        ("row", np.int64),
        ("file", np.int32),
        ("line", np.int64),
    ]
)
_WHOLE = np.dtype([("digest", np.uint64), ("low", np.uint64), ("trained", np.int64), ("held_out", np.int64)])
_QUESTION = np.dtype([("digest", np.uint64), ("trained", np.int64), ("held_out", np.int64)])


class RowIndex:
    """The index of all rows, in a file.

    Args:
        path: Records of type INDEX.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows = path.stat().st_size // INDEX.itemsize
        self.rows_at_once = max(ROWS_AT_ONCE, -(-self.rows // MOST_BUCKETS))

    def __len__(self) -> int:
        """Blocks of rows."""
        return max(1, -(-self.rows // self.rows_at_once))

    def __iter__(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the rows in blocks, each with the number of its first row."""
        with self._path.open("rb") as file:
            for first in range(0, self.rows, self.rows_at_once):
                yield first, np.frombuffer(file.read(self.rows_at_once * INDEX.itemsize), INDEX)


@dataclass(frozen=True, slots=True)
class Selection:
    """What ``select_rows`` found; the rows themselves are in the folder."""

    train: SetCounts
    eval: SetCounts
    parts: list[int]
    """Training rows of each part of the mixture."""
    counts: dict[str, int]
    """Rows read, rows left out as duplicates, and so on."""


def select_rows(
    index: RowIndex,
    files: Sequence[SourceFile],
    spec: DataSpec,
    staging: Path,
    report: BadRowReport,
    keep_references: Callable[[Sequence[int]], None],
    *,
    holds_out_share: bool,
    shows_images: bool = False,
) -> Selection:
    """Write the index of the training rows and that of the held-out rows into a folder.

    Args:
        index: All rows, those of each part of the mixture together, in the order of the parts.
        files: The files they come from.
        spec: Which share is held out, whether copies are left out.
        staging: The folder.
        report: Told of every copy.
        keep_references: Told of the held-out rows, in their order.
        holds_out_share: Whether some of the training rows are held out.
        shows_images: Whether some of the rows show images.
    """
    columns = TOKEN_COLUMNS | (IMAGE_COLUMNS if shows_images else {})
    parts_P = np.zeros(1 + max((file.part for file in files), default=0), np.int64)
    duplicates = 0
    with ExitStack() as stack:
        copies, wholes, questions = (
            stack.enter_context(Buckets(staging / f"{name}.buckets", len(index), dtype))
            for name, dtype in (("copies", COPY), ("wholes", _WHOLE), ("questions", _QUESTION))
        )
        if spec.deduplicate:
            find_copies(index, copies, staging)
        rule = _rule(index, copies, spec.eval_share if holds_out_share else None)
        train, held_out = (stack.enter_context(IndexWriter(staging, name, columns)) for name in ("train", "eval"))
        for number, (first, index_N) in enumerate(index):
            here = np.sort(copies[number], order="row")
            for row, first_file, first_line in here.tolist():
                copy = index_N[row - first]
                detail = f"as {files[first_file].path}, line {first_line}"
                report.add(files[copy["file"]].path, BadRow(int(copy["line"]), "duplicate", detail))
            duplicates += len(here)
            kept_N = _kept(len(index_N), here["row"] - first)
            held_out_N = kept_N & rule.holds_out(first, index_N)
            trained_N = kept_N & ~held_out_N
            train.append(index_N[trained_N])
            held_out.append(index_N[held_out_N])
            parts_P += np.bincount(index_N["part"][trained_N], minlength=len(parts_P))
            keep_references((first + np.flatnonzero(held_out_N)).tolist())
            _note(wholes, index_N[kept_N], held_out_N[kept_N], digest="digest", low="digest_low")
            _note(questions, index_N[kept_N], held_out_N[kept_N], digest="question")
        counts = {
            "rows": index.rows,
            "duplicates": duplicates,
            "eval_rows_in_training": sum(map(_shared, wholes)),
            "eval_questions_in_training": sum(map(_shared, questions)),
        }
    return Selection(train.counts, held_out.counts, parts_P.tolist(), counts)


def find_copies(index: RowIndex, copies: Buckets, staging: Path) -> None:
    """Find every row whose content an earlier row on the same side has.

    Rows given as held out and rows given for training are two sides: copies between them are counted, not dropped.

    Args:
        index: All rows.
        copies: Gets them as COPY, by the block of the index that they are in.
        staging: Folder for what is in between.
    """
    with Buckets(staging / "digests.buckets", len(index), _KEY) as buckets:
        for first, index_N in index:
            keys_N = np.empty(len(index_N), _KEY)
            keys_N["digest"], keys_N["low"] = index_N["digest"], index_N["digest_low"]
            keys_N["is_given"] = index_N["part"] == HELD_OUT
            keys_N["row"] = first + np.arange(len(index_N))
            keys_N["file"], keys_N["line"] = index_N["file"], index_N["line"]
            buckets.add(bucket_of(keys_N["digest"], len(buckets)), keys_N)
        for keys_N in buckets:
            found_N = _copies_among(keys_N)
            copies.add(found_N["row"] // index.rows_at_once, found_N)


def _copies_among(keys_N: NDArray[Any]) -> NDArray[Any]:
    ordered_N = keys_N[np.lexsort([keys_N[name] for name in ("row", "is_given", "low", "digest")])]
    is_copy_N = ~_begins(ordered_N, ("digest", "low", "is_given"))
    first_N = np.maximum.accumulate(np.where(is_copy_N, 0, np.arange(len(ordered_N))))[is_copy_N]
    found_N = np.empty(len(first_N), COPY)
    found_N["row"] = ordered_N["row"][is_copy_N]
    found_N["first_file"], found_N["first_line"] = ordered_N["file"][first_N], ordered_N["line"][first_N]
    return found_N


def _begins(ordered_N: NDArray[Any], names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which of sorted records differ in these fields from the one before."""
    begins_N = np.zeros(len(ordered_N), np.bool_)
    begins_N[:1] = True
    for name in names:
        begins_N[1:] |= ordered_N[name][1:] != ordered_N[name][:-1]
    return begins_N


def _kept(count: int, left_out: NDArray[np.int64]) -> NDArray[np.bool_]:
    kept_N = np.ones(count, np.bool_)
    kept_N[left_out] = False
    return kept_N


@dataclass(frozen=True, slots=True)
class _Rule:
    """Which rows are held out: by where they come from, or by their content."""

    below: np.uint64 | None = None
    """Digest below which a row is held out; None: those that were given as held out are."""
    also: int = -1
    """A row that is held out whatever its digest."""
    never: int = -1
    """A row that is not."""

    def holds_out(self, first: int, index_N: NDArray[Any]) -> NDArray[np.bool_]:
        if self.below is None:
            given_N: NDArray[np.bool_] = index_N["part"] == HELD_OUT
            return given_N
        held_out_N: NDArray[np.bool_] = index_N["digest"] < self.below
        for row, is_held_out in ((self.also, True), (self.never, False)):
            if 0 <= row - first < len(index_N):
                held_out_N[row - first] = is_held_out
        return held_out_N


def _rule(index: RowIndex, copies: Buckets, share: float | None) -> _Rule:
    """Return which rows are held out; of a few rows at least one is, and one is not."""
    if share is None or not index.rows:
        return _Rule()
    below = np.uint64(held_out_limit(share))
    kept = 0
    least: tuple[int, int] | None = None
    most: tuple[int, int] | None = None
    for number, (first, index_N) in enumerate(index):
        rows = np.flatnonzero(_kept(len(index_N), copies[number]["row"] - first))
        if not len(rows):
            continue
        kept += len(rows)
        digests_N = index_N["digest"][rows]
        low, high = int(digests_N.argmin()), int(digests_N.argmax())
        if least is None or digests_N[low] < least[0]:
            least = int(digests_N[low]), first + int(rows[low])
        if most is None or digests_N[high] > most[0]:
            most = int(digests_N[high]), first + int(rows[high])
    if least is not None and least[0] >= below:
        return _Rule(below, also=least[1])
    if most is not None and most[0] < below and kept > 1:
        return _Rule(below, never=most[1])
    return _Rule(below)


def _note(buckets: Buckets, index_N: NDArray[Any], held_out_N: NDArray[np.bool_], **fields: str) -> None:
    """Put rows into buckets by what they may have in common; what is the same in many of them, once."""
    dtype = _WHOLE if "low" in fields else _QUESTION
    records_N = np.empty(len(index_N), dtype)
    for name, field in fields.items():
        records_N[name] = index_N[field]
    records_N["held_out"], records_N["trained"] = held_out_N, ~held_out_N
    summed_N = _summed(records_N)
    buckets.add(bucket_of(summed_N["digest"], len(buckets)), summed_N)


def _summed(records_N: NDArray[Any]) -> NDArray[Any]:
    """Return records with the same digests as one, their counts added up."""
    if not len(records_N):
        return records_N
    names = [name for name in ("low", "digest") if name in (records_N.dtype.names or ())]
    ordered_N = records_N[np.lexsort([records_N[name] for name in names])]
    begin = np.flatnonzero(_begins(ordered_N, names))
    summed_N = ordered_N[begin]
    for name in ("trained", "held_out"):
        summed_N[name] = np.add.reduceat(ordered_N[name], begin)
    return summed_N


def _shared(records_N: NDArray[Any]) -> int:
    """Return how many held-out rows have something in common with a training row."""
    summed_N = _summed(records_N)
    return int(summed_N["held_out"][summed_N["trained"] > 0].sum())
