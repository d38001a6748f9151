"""Rows of token ids in flat files, which ranks map into memory.

The tokens of all rows, training and held-out, lie end to end in two files; which of them a set holds is an index. So
rows are written in one pass over the data, before it is known which are left out.

Letters: N rows of a set, L tokens of all rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from hpcgemma.train.data.images import Images, RowImages
from hpcgemma.train.data.prompts import TokenizedRow

IDS_NAME = "ids.bin"
TARGETS_NAME = "is_target.bin"

TOKEN_COLUMNS = {"starts_N": "start", "lengths_N": "length", "targets_N": "targets"}
"""The index of a set, and where each of its columns comes from in the index of all rows."""

IMAGE_COLUMNS = {"image_starts_N": "image_start", "image_counts_N": "images"}
"""The same, of sets that show images."""


@dataclass(frozen=True, slots=True)
class SetCounts:
    """How much a set of rows is."""

    rows: int = 0
    tokens: int = 0
    target_tokens: int = 0
    longest_row_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TokenRows:
    """A set of rows."""

    ids_L: NDArray[np.int32]
    is_target_L: NDArray[np.bool_]
    """Whether a token is learned."""
    starts_N: NDArray[np.int64]
    """Where each row begins."""
    lengths_N: NDArray[np.int64]
    """Tokens of each row."""
    targets_N: NDArray[np.int64]
    """Tokens of each row that are learned."""
    images: RowImages | None = None
    """What the rows show; None: no row of the data shows an image."""

    def __len__(self) -> int:
        return len(self.targets_N)

    def ids(self, row: int) -> NDArray[np.int32]:
        """Return a row's token ids."""
        return self.ids_L[self.starts_N[row] : self.starts_N[row] + self.lengths_N[row]]

    def is_target(self, row: int) -> NDArray[np.bool_]:
        """Return which of a row's tokens are learned."""
        return self.is_target_L[self.starts_N[row] : self.starts_N[row] + self.lengths_N[row]]

    def prompt(self, row: int) -> NDArray[np.int32]:
        """Return a row's token ids up to its last answer."""
        is_target = self.is_target(row)
        last = int(np.flatnonzero(is_target)[-1])
        before = np.flatnonzero(~is_target[:last])
        return self.ids(row)[: int(before[-1]) + 1]

    def longest(self, count: int) -> NDArray[np.int64]:
        """Return the rows with most tokens, longest first."""
        return np.argsort(-self.lengths_N, kind="stable")[:count].astype(np.int64)

    def save_index(self, folder: Path, name: str) -> None:
        """Write which rows the set holds into the folder of the tokens."""
        for field in TOKEN_COLUMNS:
            np.save(folder / f"{name}.{field}.npy", getattr(self, field))
        if self.images is not None:
            self.images.save_index(folder, name)

    @classmethod
    def open(cls, folder: Path, name: str, images: Images | None = None) -> TokenRows:
        """Map a set of a folder into memory.

        Args:
            folder: The tokens' folder.
            name: Which set.
            images: The images that rows of the folder show; None: they show none.
        """
        ids_L, is_target_L = open_tokens(folder)
        starts_N, lengths_N, targets_N = (
            np.load(folder / f"{name}.{field}.npy", mmap_mode="r") for field in TOKEN_COLUMNS
        )
        shown = None if images is None else RowImages.open(folder, name, images)
        return cls(ids_L, is_target_L, starts_N, lengths_N, targets_N, shown)

    @classmethod
    def of(cls, rows: Iterable[TokenizedRow], images: RowImages | None = None) -> TokenRows:
        """Lay tokenized rows end to end, in memory."""
        listed = list(rows)
        lengths_N = np.asarray([len(row.ids) for row in listed], np.int64)
        return cls(
            ids_L=np.asarray([number for row in listed for number in row.ids], np.int32),
            is_target_L=np.asarray([flag for row in listed for flag in row.is_target], np.bool_),
            starts_N=np.cumsum(lengths_N) - lengths_N,
            lengths_N=lengths_N,
            targets_N=np.asarray([sum(row.is_target) for row in listed], np.int64),
            images=images,
        )


def open_tokens(folder: Path) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Map the tokens of a folder, and whether they are learned, into memory."""
    return _mapped(folder / IDS_NAME, np.int32), _mapped(folder / TARGETS_NAME, np.bool_)


def _mapped(path: Path, dtype: Any) -> NDArray[Any]:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)


class TokenWriter:
    """Appends tokens to the files of a folder.

    Args:
        folder: A folder without tokens.
    """

    def __init__(self, folder: Path) -> None:
        self._ids = (folder / IDS_NAME).open("xb")
        self._is_target = (folder / TARGETS_NAME).open("xb")
        self.tokens = 0
        """Tokens written so far."""

    def append(self, ids: NDArray[np.int32], is_target: NDArray[np.bool_]) -> None:
        """Write tokens, and whether they are learned."""
        self._ids.write(ids.tobytes())
        self._is_target.write(is_target.tobytes())
        self.tokens += len(ids)

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ids.close()
        self._is_target.close()


class IndexWriter:
    """Writes which rows a set holds, some at a time; the files are whole at the end of a ``with`` block.

    Args:
        folder: The folder of the tokens.
        name: Name of the set.
        columns: What is written of each row: the field of the set's index, and that of the index of all rows.
    """

    def __init__(self, folder: Path, name: str, columns: Mapping[str, str]) -> None:
        self._fields = columns
        self._paths = {field: folder / f"{name}.{field}.npy" for field in columns}
        self._columns = {field: path.with_suffix(".part").open("w+b") for field, path in self._paths.items()}
        self.counts = SetCounts()
        """Of the rows so far."""

    def append(self, index_N: NDArray[Any]) -> None:
        """Write rows as the index of all rows has them."""
        for field, name in self._fields.items():
            self._columns[field].write(index_N[name].astype(np.int64).tobytes())
        self.counts = SetCounts(
            rows=self.counts.rows + len(index_N),
            tokens=self.counts.tokens + int(index_N["length"].sum()),
            target_tokens=self.counts.target_tokens + int(index_N["targets"].sum()),
            longest_row_tokens=max(self.counts.longest_row_tokens, int(index_N["length"].max(initial=0))),
        )

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for field, column in self._columns.items():
            with column:
                if error is None:
                    _write_npy(self._paths[field], column, self.counts.rows)
            self._paths[field].with_suffix(".part").unlink()


def _write_npy(path: Path, column: BinaryIO, rows: int) -> None:
    """Write a column as numpy saves it: how many rows there are stands before them."""
    column.seek(0)
    with path.open("xb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int64)), "fortran_order": False, "shape": (rows,)}
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(column, file, 1 << 20)
