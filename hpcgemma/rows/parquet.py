"""Rows of Parquet files, row group by row group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hpcgemma.errors import InputError
from hpcgemma.rows.bad_rows import BadRow
from hpcgemma.rows.chunks import Chunk
from hpcgemma.rows.compression import data_package
from hpcgemma.rows.records import Record

_BATCH_ROWS = 256


def parquet_chunks(path: Path) -> Iterator[Chunk]:
    """Yield a chunk per row group; only the file's footer is read.

    Raises:
        InputError: pyarrow is missing, or the footer cannot be read.
    """
    parquet = data_package("pyarrow.parquet", f"{path}: a Parquet file")
    try:
        with parquet.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {error}", "copy or write the file again") from error
    first, file_bytes, all_rows = 1, path.stat().st_size, max(sum(sizes), 1)
    for index, rows in enumerate(sizes):
        end = file_bytes * (first - 1 + rows) // all_rows
        yield Chunk(str(path), "parquet", first, b"", end, row_group=index)
        first += rows


def parquet_rows(chunk: Chunk) -> Iterator[Record | BadRow]:
    """Yield the rows of a row group, and one bad row where it cannot be read further."""
    parquet = data_package("pyarrow.parquet", f"{chunk.path}: a Parquet file")
    row = chunk.first_line
    try:
        with parquet.ParquetFile(chunk.path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[chunk.row_group]):
                for fields in batch.to_pylist():
                    yield Record(row, fields)
                    row += 1
    except (OSError, ValueError) as error:
        yield BadRow(row, "broken_file", str(error).partition("\n")[0])
