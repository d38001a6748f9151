"""Rows of text files line by line: JSON lines, CSV, TSV and plain text."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any

from hpcgemma.errors import InputError
from hpcgemma.rows.bad_rows import BadRow
from hpcgemma.rows.chunks import MAX_ROW_BYTES, Chunk, Row
from hpcgemma.rows.compression import Pieces

MAX_DOCUMENT_BYTES = 1_000_000_000
_BOM = b"\xef\xbb\xbf"


def json_line_chunks(pieces: Pieces, path: str, chunk_bytes: int) -> Iterator[Chunk]:
    """Yield chunks of whole lines, uncut and not looked into."""
    waiting: list[bytes] = []
    size, line, skipping = 0, 1, False

    def bad(reason_is_file: bool, detail: str) -> Chunk:
        row = BadRow(line, "broken_file" if reason_is_file else "broken_json", detail)
        return Chunk(path, "json_lines", line, b"", pieces.end, bad_rows=(row,))

    for piece in pieces:
        rest = piece
        if skipping:
            cut = rest.find(b"\n")
            if cut < 0:
                continue
            rest, skipping, line = rest[cut + 1 :], False, line + 1
        waiting.append(rest)
        size += len(rest)
        if size < chunk_bytes:
            continue
        if b"\n" in rest:
            payload, _, rest = b"".join(waiting).rpartition(b"\n")
            yield Chunk(path, "json_lines", line, payload, pieces.end)
            line += payload.count(b"\n") + 1
            waiting, size = [rest], len(rest)
        if size > MAX_ROW_BYTES and b"\n" not in b"".join(waiting):
            yield bad(False, f"a line longer than {MAX_ROW_BYTES} bytes")
            waiting, size, skipping = [], 0, True
    payload = b"".join(waiting)
    if pieces.damage is not None:
        payload, _, _ = payload.rpartition(b"\n")  # the line that was cut off is the damage itself
    if payload.strip():
        yield Chunk(path, "json_lines", line, payload, pieces.end)
    if pieces.damage is not None:
        line += payload.count(b"\n") + bool(payload)
        yield bad(True, pieces.damage)


def _whole_line(line: int, text: bytes, size: int) -> bytes | None:
    if size > MAX_ROW_BYTES:
        return None
    return text.removeprefix(_BOM) if line == 1 else text


def lines_of(pieces: Pieces) -> Iterator[tuple[int, bytes | None]]:
    """Yield each line with its number, its line break kept; None for one that is too long."""
    line, size = 1, 0
    waiting: list[bytes] = []
    for piece in pieces:
        *whole, rest = piece.split(b"\n")
        for part in whole:
            waiting.append(part)
            text = b"".join(waiting) + b"\n"
            yield line, _whole_line(line, text, size)
            line += 1
            waiting, size = [], 0
        size += len(rest)
        if size <= MAX_ROW_BYTES:
            waiting.append(rest)
    text = b"".join(waiting)
    if text and pieces.damage is None:
        yield line, _whole_line(line, text, size)
    if pieces.damage is not None:
        yield line, None


def _json(fields: dict[str, Any]) -> bytes:
    # Bytes that are no UTF-8 pass through, so that the worker finds them.
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _unread(pieces: Pieces, line: int) -> Row:
    if pieces.damage is not None:
        return Row(line, b"", pieces.end, BadRow(line, "broken_file", pieces.damage))
    detail = f"a line longer than {MAX_ROW_BYTES} bytes"
    return Row(line, b"", pieces.end, BadRow(line, "broken_json", detail))


def table_rows(pieces: Pieces, path: str, delimiter: str) -> Iterator[Row]:
    """Yield the rows of a table as JSON objects under its header's names.

    Raises:
        InputError: The header has empty or doubled names.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    unread: list[int] = []

    def text_lines() -> Iterator[str]:
        for line, text in lines_of(pieces):
            if text is None:
                unread.append(line)
            # A line too long still counts, as an empty one.
            yield "\n" if text is None else text.decode("utf-8", "surrogateescape")

    reader = csv.reader(text_lines(), delimiter=delimiter)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise InputError(f"{path}: no table: {error}", "write it anew, with a line break after each row") from None
    names = [name.strip() for name in header]
    if not names or "" in names or len(set(names)) < len(names):
        raise InputError(
            f"{path}: the first line of a table names its columns, each once; it says {names}",
            f"write a header as its first line, as in: prompt{delimiter}answer",
        )
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, b"", pieces.end, BadRow(line, "broken_json", str(error)))
            continue
        while unread:
            yield _unread(pieces, unread.pop())
        if not cells:
            continue
        if len(cells) != len(names):
            detail = f"{len(cells)} cells, but the header has {len(names)}"
            yield Row(line, b"", pieces.end, BadRow(line, "broken_json", detail))
            # An unclosed quote swallows the rows up to the next one: they are lost too, and counted.
            for lost in range(line + 1, reader.line_num + 1):
                detail = f"it is inside a quote that is open since line {line}"
                yield Row(lost, b"", pieces.end, BadRow(lost, "broken_json", detail))
            continue
        yield Row(line, _json(dict(zip(names, cells, strict=True))), pieces.end)


def text_rows(pieces: Pieces, path: str, sample_by: str) -> Iterator[Row]:
    """Yield the lines, the paragraphs or the whole of a text.

    Raises:
        InputError: A document is above 1 GB.
    """
    waiting: list[bytes] = []
    first, size = 1, 0

    def gathered() -> Iterator[Row]:
        text = b"".join(waiting).strip(b"\r\n")
        if text.strip():
            yield Row(first, _json({"text": text.decode("utf-8", "surrogateescape")}), pieces.end)

    for line, text in lines_of(pieces):
        if text is None:
            yield from gathered()
            waiting, size = [], 0
            yield _unread(pieces, line)
            continue
        if text.strip():
            first = first if waiting else line
            waiting.append(text)
        elif sample_by == "document" and waiting:
            waiting.append(text)
        size += len(text)
        if size > MAX_DOCUMENT_BYTES and sample_by == "document":
            raise InputError(f"{path}: a document above 1 GB", "set data.sample_by: paragraph")
        if sample_by == "line" or (sample_by == "paragraph" and not text.strip()):
            yield from gathered()
            waiting, size = [], 0
    yield from gathered()
