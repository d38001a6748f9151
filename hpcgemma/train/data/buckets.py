"""Records on disk in buckets, so that those which belong together are in memory together, and no others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BUCKETS = 128
"""Each is an open file; a process may have 1024 of them where nobody has asked for more."""


class Buckets:
    """Records of one type, each in one of some buckets; gone at the end of a ``with`` block.

    Args:
        folder: Where their files go; it must not exist.
        count: How many buckets.
        dtype: Type of a record.
    """

    def __init__(self, folder: Path, count: int, dtype: np.dtype[Any]) -> None:
        self._folder, self._dtype = folder, dtype
        folder.mkdir()
        self._files = [(folder / f"{number}.bin").open("w+b") for number in range(count)]

    def __len__(self) -> int:
        return len(self._files)

    def add(self, numbers_N: NDArray[np.int64], records_N: NDArray[Any]) -> None:
        """Put each record into the bucket of its number, behind those that are there."""
        order = np.argsort(numbers_N, kind="stable")
        ends = np.searchsorted(numbers_N[order], np.arange(len(self) + 1))
        for file, begin, end in zip(self._files, ends[:-1], ends[1:], strict=True):
            if end > begin:
                file.write(records_N[order[begin:end]].tobytes())

    def __getitem__(self, number: int) -> NDArray[Any]:
        file = self._files[number]
        file.seek(0)
        return np.frombuffer(file.read(), self._dtype)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return (self[number] for number in range(len(self)))

    def __enter__(self) -> Buckets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
        shutil.rmtree(self._folder)


def bucket_of(digests_N: NDArray[np.uint64], count: int) -> NDArray[np.int64]:
    """Return the bucket of each digest: by its highest bits, so that all buckets get about as many."""
    high_N = digests_N >> np.uint64(32)
    return ((high_N * np.uint64(count)) >> np.uint64(32)).astype(np.int64)
