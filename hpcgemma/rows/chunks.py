"""Pieces of a file that another process can turn into rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from hpcgemma.rows.bad_rows import BadRow

Kind = Literal["json_lines", "json", "csv", "tsv", "parquet", "text"]

MAX_ROW_BYTES = 64 * 1024 * 1024
"""A row longer than this is a bad row: it would not fit the memory of every worker."""

_SEPARATOR = b"\x1e"  # no JSON text holds this control character unescaped


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one file, not parsed yet; picklable."""

    path: str
    kind: Kind
    first_line: int
    """The line of its first row, counted from 1; in a Parquet file the row."""
    payload: bytes
    """JSON lines as the file has them; of the other kinds framed rows; empty for Parquet."""
    end: int
    """Bytes of the (compressed) file read so far."""
    row_group: int | None = None
    """The row group of a Parquet file."""
    bad_rows: tuple[BadRow, ...] = field(default=())
    """What the reader itself found broken, after the rows of the payload."""


def frame(line: int, text: bytes) -> bytes:
    """Return a row's JSON text with its line, to be joined with others into a payload."""
    return b"%d:%b" % (line, text)


def join_frames(frames: Iterable[bytes]) -> bytes:
    """Return the payload of some framed rows."""
    return _SEPARATOR.join(frames)


def split_frames(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield line and JSON text of each row of a payload."""
    for framed in payload.split(_SEPARATOR) if payload else ():
        line, _, text = framed.partition(b":")
        yield int(line), text


@dataclass(frozen=True, slots=True)
class Row:
    """A row's JSON text, or what is wrong with it."""

    line: int
    text: bytes
    end: int
    bad: BadRow | None = None


def chunks_of(rows: Iterable[Row], path: str, kind: Kind, chunk_bytes: int) -> Iterator[Chunk]:
    """Yield the chunks of a stream of rows, each of about ``chunk_bytes``."""
    frames: list[bytes] = []
    size = first_line = end = 0
    for row in rows:
        first_line = first_line if frames else row.line
        end = row.end
        if row.bad is None:
            frames.append(frame(row.line, row.text))
            size += len(row.text)
        if row.bad is not None or size >= chunk_bytes:
            bad_rows = () if row.bad is None else (row.bad,)
            yield Chunk(path, kind, first_line, join_frames(frames), end, bad_rows=bad_rows)
            frames, size = [], 0
    if frames:
        yield Chunk(path, kind, first_line, join_frames(frames), end)
