"""Data files of every kind as a stream of rows: never a whole file in memory, never ended by a broken row."""

from __future__ import annotations

import difflib
import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hpcgemma.errors import InputError
from hpcgemma.rows.bad_rows import BadRow
from hpcgemma.rows.chunks import Chunk, Kind, chunks_of, split_frames
from hpcgemma.rows.compression import GZIP_MAGIC, ZSTD_MAGIC, Compression, Pieces
from hpcgemma.rows.json_array import ArrayReader
from hpcgemma.rows.parquet import parquet_chunks, parquet_rows
from hpcgemma.rows.records import Record
from hpcgemma.rows.tables import json_line_chunks, table_rows, text_rows

__all__ = [
    "Chunk",
    "Container",
    "container_of",
    "find_files",
    "first_records",
    "first_rows",
    "parse_chunk",
    "read_chunks",
]

VALID_KINDS = ".jsonl, .json, .csv, .tsv, .parquet, .txt, .md; all but .parquet also as .gz or .zst"
_SUFFIXES: dict[str, Kind] = {
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
    ".text": "text",
}
_PACKED = (".gz", ".zst", ".zstd")
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Container:
    """How a file keeps its rows."""

    kind: Kind
    compression: Compression | None
    evidence: str
    """What shows it, in a few words."""


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return Path(name).suffix


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        inside = (found for found in path.rglob("*") if found.is_file() and _suffix(found) in _SUFFIXES)
        return sorted(
            found for found in inside if not any(part.startswith(".") for part in found.relative_to(path).parts)
        )
    if path.is_file():
        return [path]
    names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return sorted(found for name in names if (found := Path(name)).is_file())


def find_files(patterns: Sequence[str], name: str = "data.train") -> list[Path]:
    """Return the data files the patterns name, in their order, sorted within each, none twice.

    Args:
        patterns: Files, globs (``**`` too) or folders.
        name: The field they come from, for the error.

    Raises:
        InputError: A pattern finds nothing, or a file cannot be read.
    """
    files: dict[Path, Path] = {}
    for pattern in patterns:
        if not pattern.strip():
            raise InputError(f"{name} is empty; valid are {VALID_KINDS}", f"--set {name}=FILE")
        try:
            found = _matches(pattern)
        except RuntimeError as error:  # ~NAME of somebody who is not there
            raise InputError(f"{name}: {pattern}: {error}", f"--set {name}=FILE") from None
        if not found:
            raise InputError(f"{name}: {pattern} finds no data file; valid are {VALID_KINDS}", _nearby(pattern))
        for path in found:
            try:
                with path.open("rb"):
                    files.setdefault(path.resolve(), path)
            except OSError as error:
                raise InputError(f"{name}: {path} cannot be read: {error.strerror}", f"ls -l {path}") from error
    return list(files.values())


def _nearby(pattern: str) -> str:
    path = Path(pattern).expanduser()
    try:
        names = [found.name for found in path.parent.iterdir()]
    except OSError:
        return f"there is no folder {path.parent}; name a file, a glob such as data/*.jsonl, or a folder"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {path.parent / close[0]}?" if close else f"ls {path.parent}"


def container_of(path: Path) -> Container:
    """Tell a file's kind by its first bytes, and by its name where those do not show it.

    Raises:
        InputError: The file is empty, unreadable, UTF-16, or of no valid kind.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}", f"ls -l {path}") from error
    if magic == b"PAR1":
        return Container("parquet", None, "begins with PAR1")
    compression: Compression | None = None
    if magic.startswith(GZIP_MAGIC):
        compression = "gzip"
    elif magic == ZSTD_MAGIC:
        compression = "zstd"
    head = b""
    pieces = Pieces(path, compression, _HEAD_BYTES)
    for piece in pieces:
        head += piece
        if len(head) >= _HEAD_BYTES:
            break
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{path}: UTF-16, but text must be UTF-8", f"iconv -f UTF-16 -t UTF-8 {path} > utf8.jsonl")
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head and pieces.damage is not None:
        raise InputError(f"{path}: {pieces.damage}", "compress it anew, or name another file")
    if not head:
        raise InputError(f"{path}: empty", "name a file with rows, or remove it from the recipe")
    named = _SUFFIXES.get(_suffix(path))
    if named in ("csv", "tsv", "text"):  # a text may begin with a bracket
        return Container(named, compression, f"named {_suffix(path)}")
    if head.startswith(b"["):
        # A damaged first row of JSON lines may be a list; a second line that is an object tells.
        lines = head.split(b"\n", 2)
        if len(lines) > 1 and _is_value(lines[0]) and lines[1].lstrip().startswith(b"{"):
            return Container("json_lines", compression, "each line is a JSON value")
        return Container("json", compression, "begins with [")
    if head.startswith(b"{"):
        if _is_one_object(head):
            raise InputError(
                f"{path}: one JSON object over several lines; a file holds a list of rows, or a row per line",
                f"jq -c '.data[]' {path} > rows.jsonl   (with the name of its list)",
            )
        return Container("json_lines", compression, "begins with {")
    if named == "json_lines" or named == "json":
        return Container("json_lines", compression, f"named {_suffix(path)}")
    raise InputError(
        f"{path}: no kind of data file; valid are {VALID_KINDS}", "convert it, or give it its right suffix"
    )


def _is_value(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_one_object(head: bytes) -> bool:
    lines = [line for line in head.split(b"\n", 20)[:20] if line.strip()]
    if len(lines) < 2 or any(line.startswith(b"{") and _is_value(line) for line in lines):
        return False
    # Lines of an object's inside begin with a name or a bracket, not again with a brace at the margin.
    return not any(line.startswith(b"{") for line in lines[1:])


def read_chunks(
    path: Path, container: Container, *, sample_by: str = "line", chunk_bytes: int = 1 << 20
) -> Iterator[Chunk]:
    """Yield a file's rows in chunks for `parse_chunk`, holding about one chunk at a time.

    Args:
        path: The file.
        container: What `container_of` says of it.
        sample_by: What of a text is a row: line, paragraph or document.
        chunk_bytes: About how large a chunk is.

    Raises:
        InputError: Nothing of the file can be read: a table without header, a Parquet file without footer.
    """
    if container.kind == "parquet":
        yield from parquet_chunks(path)
        return
    pieces = Pieces(path, container.compression, min(chunk_bytes, 1 << 20))
    if container.kind == "json_lines":
        yield from json_line_chunks(pieces, str(path), chunk_bytes)
        return
    if container.kind == "json":
        rows = ArrayReader(pieces).rows()
    elif container.kind == "text":
        rows = text_rows(pieces, str(path), sample_by)
    else:
        rows = table_rows(pieces, str(path), "\t" if container.kind == "tsv" else ",")
    yield from chunks_of(rows, str(path), container.kind, chunk_bytes)


def parse_chunk(chunk: Chunk) -> Iterator[Record | BadRow]:
    """Yield the rows of a chunk, in order."""
    if chunk.kind == "parquet":
        yield from parquet_rows(chunk)
    elif chunk.kind == "json_lines":
        for line, text in enumerate(chunk.payload.split(b"\n"), chunk.first_line):
            text = text.removeprefix(b"\xef\xbb\xbf") if line == 1 else text
            if text.strip():
                yield _parsed(line, text)
    else:
        for line, text in split_frames(chunk.payload):
            yield _parsed(line, text)
    yield from chunk.bad_rows


def _parsed(line: int, text: bytes) -> Record | BadRow:
    try:
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        return BadRow(line, "bad_utf8", f"byte {error.start + 1} of the row is {text[error.start]:#04x}")
    except json.JSONDecodeError as error:
        return BadRow(line, "broken_json", f"{error.msg} at character {error.pos + 1} of the row")
    except (ValueError, RecursionError) as error:
        return BadRow(line, "broken_json", str(error))
    if not isinstance(value, dict):
        return BadRow(line, "wrong_type", f"a row is an object with named fields, not a {type(value).__name__}")
    return Record(line, value)


def first_rows(path: Path, count: int, sample_by: str = "line") -> list[Record | BadRow]:
    """Return the first rows of a file, good and bad, reading no further than needed."""
    chunks = read_chunks(path, container_of(path), sample_by=sample_by, chunk_bytes=1 << 16)
    return list(islice((row for chunk in chunks for row in parse_chunk(chunk)), count))


def first_records(paths: Sequence[Path], count: int, sample_by: str = "line") -> list[Record]:
    """Return the first good rows of the files, reading no further than needed."""

    def records() -> Iterator[Record]:
        for path in paths:
            for chunk in read_chunks(path, container_of(path), sample_by=sample_by, chunk_bytes=1 << 16):
                yield from (row for row in parse_chunk(chunk) if isinstance(row, Record))

    return list(islice(records(), count))
