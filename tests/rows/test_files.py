"""Reading data files: every kind, any chunk size, every damage."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcgemma.errors import InputError
from hpcgemma.rows.bad_rows import BadRow
from hpcgemma.rows.files import container_of, find_files, first_records, parse_chunk, read_chunks
from hpcgemma.rows.records import Record

ROWS = [{"prompt": f'q {i} "ä" }}, {{', "answer": f"line\nbreak {i} 雪"} for i in range(12)]
CHUNKS = [1, 7, 100, 1 << 20]


def read(path: Path, chunk_bytes: int = 1 << 20, sample_by: str = "line") -> list[Record | BadRow]:
    chunks = read_chunks(path, container_of(path), sample_by=sample_by, chunk_bytes=chunk_bytes)
    return [row for chunk in chunks for row in parse_chunk(chunk)]


def good(rows: list[Record | BadRow]) -> list[object]:
    return [dict(row.fields) for row in rows if isinstance(row, Record)]


def bad(rows: list[Record | BadRow]) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in rows if isinstance(row, BadRow)]


def texts(layout: str) -> list[bytes]:
    indent = 1 if layout == "pretty" else None
    texts = [json.dumps(row, indent=indent, ensure_ascii=False) for row in ROWS]
    return [text.replace("\n", "\n ").encode() if layout == "pretty" else text.encode() for text in texts]


def layout_bytes(layout: str, rows: list[bytes]) -> bytes:
    if layout == "lines":
        return b"\n".join(rows) + b"\n"
    if layout == "pretty":
        return b"[\n " + b",\n ".join(rows) + b"\n]\n"
    if layout == "line_each":
        return b"[\n" + b",\n".join(rows) + b"\n]"
    return b"[" + b", ".join(rows) + b"]"


LAYOUTS = ["lines", "pretty", "line_each", "one_line"]


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_gives_the_same_rows_whatever_its_layout_and_the_chunks(
    tmp_path: Path, layout: str, compress: bool, chunk_bytes: int
) -> None:
    path = tmp_path / "rows.json"
    data = layout_bytes(layout, texts(layout))
    path.write_bytes(gzip.compress(data[:50]) + gzip.compress(data[50:]) if compress else data)
    rows = read(path, chunk_bytes)
    assert good(rows) == ROWS
    assert bad(rows) == []
    step = 4 if layout == "pretty" else 1
    begin = 1 if layout in ("lines", "one_line") else 2
    lines = [1] * 12 if layout == "one_line" else [begin + step * i for i in range(12)]
    assert [row.line for row in rows] == lines


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "half": (lambda text: text[: len(text) // 2], "broken_json"),
    "quote": (lambda text: text.rstrip(b"}\n ")[:-1] + b"}", "broken_json"),
    "comma": (lambda text: text.replace(b'",', b'"', 1).replace(b'" ,', b'"', 1), "broken_json"),
    "brace": (lambda text: text[:-1], "broken_json"),
    "utf8": (lambda text: text.replace("ä".encode(), b"\xff\xc3"), "bad_utf8"),
    "number": (lambda text: b"3", "wrong_type"),
    "string": (lambda text: b'"a"', "wrong_type"),
    "list": (lambda text: b"[1]", "wrong_type"),
    "null": (lambda text: b"null", "wrong_type"),
}


@pytest.mark.parametrize("chunk_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("place", [0, 5, 11])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_broken_row_is_one_bad_row_and_all_others_stay(
    tmp_path: Path, layout: str, damage: str, place: int, chunk_bytes: int
) -> None:
    path = tmp_path / "rows.json"
    change, reason = DAMAGE[damage]
    rows = texts(layout)
    rows[place] = change(rows[place])
    path.write_bytes(layout_bytes(layout, rows))
    read_rows = read(path, chunk_bytes)
    assert [found for _, found in bad(read_rows)] == [reason]
    assert good(read_rows) == ROWS[:place] + ROWS[place + 1 :]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gzip_file_cut_off_keeps_its_rows_and_is_one_bad_row(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "rows.json.gz"
    path.write_bytes(gzip.compress(layout_bytes(layout, texts(layout)), compresslevel=0)[:-300])
    rows = read(path)
    kept = good(rows)
    assert kept == ROWS[: len(kept)]
    assert len(kept) > 3
    assert [reason for _, reason in bad(rows)] == ["broken_file"]


@pytest.mark.parametrize("cut", [1, 20])
def test_an_array_without_its_end_is_one_bad_row(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(layout_bytes("one_line", texts("one_line"))[:-cut])
    rows = read(path)
    assert good(rows) == ROWS[: 12 if cut == 1 else 11]
    assert [reason for _, reason in bad(rows)] == ["broken_file"]


@pytest.mark.parametrize("chunk_bytes", CHUNKS)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_keeps_quoted_line_breaks_and_skips_rows_of_other_width(
    tmp_path: Path, suffix: str, chunk_bytes: int
) -> None:
    path = tmp_path / f"rows.{suffix}"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",")
        writer.writerow(["prompt", "answer"])
        writer.writerows(row.values() for row in ROWS)
        writer.writerow(["one"])
    rows = read(path, chunk_bytes)
    assert good(rows) == ROWS
    assert bad(rows) == [(26, "broken_json")]


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", [(1, "a"), (2, "b"), (4, "c")]),
        ("paragraph", [(1, "a\nb"), (4, "c")]),
        ("document", [(1, "a\nb\n\nc")]),
    ],
)
def test_a_text_is_sampled_by_line_paragraph_or_document(
    tmp_path: Path, sample_by: str, expected: list[tuple[int, str]]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\nb\n\nc\n")
    assert read(path, 1, sample_by) == [Record(line, {"text": text}) for line, text in expected]


def test_parquet_keeps_bytes(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"a": i, "image": b"\xff%d" % i} for i in range(10)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=3)
    assert read(tmp_path / "a.parquet") == [Record(i + 1, row) for i, row in enumerate(rows)]


def test_zstd_frames_are_read_and_a_cut_is_one_bad_row(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    data = layout_bytes("lines", texts("lines"))
    packed = zstandard.compress(data[:50]) + zstandard.compress(data[50:])
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(packed)
    assert good(read(path)) == ROWS
    path.write_bytes(packed[:-5])
    assert [reason for _, reason in bad(read(path))] == ["broken_file"]


def test_files_are_found_once_in_the_order_of_the_patterns(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl", "c.bin"):
        (tmp_path / name).write_text("{}\n")
    found = find_files([str(tmp_path / "b.jsonl"), str(tmp_path / "*.jsonl"), str(tmp_path)])
    assert found == [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]
    assert first_records(found, 1) == [Record(1, {})]
    with pytest.raises(InputError, match=r"data\.train: .*aa\.jsonl finds no data file") as caught:
        find_files([str(tmp_path / "aa.jsonl")])
    assert "did you mean" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.json", b"", "empty"),
        ("a.json", '{"a": 1}'.encode("utf-16"), "UTF-16"),
        ("a.json", b'{\n "data": [\n  {"a": 1}\n ]\n}', "one JSON object"),
        ("a.bin", b"\x00\x01", "valid are"),
    ],
)
def test_a_file_of_no_valid_kind_is_refused(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=says):
        container_of(tmp_path / name)


def test_rows_that_an_unclosed_quote_swallows_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\na,b\n"c,d\ne,f\ng,h\n')
    rows = [row for chunk in read_chunks(path, container_of(path)) for row in parse_chunk(chunk)]
    assert [(type(row), row.line) for row in rows] == [(Record, 2), (BadRow, 3), (BadRow, 4), (BadRow, 5)]


@pytest.mark.parametrize("pattern", ["", " ", "~nobody-of-this-name/rows.jsonl"])
def test_a_pattern_that_names_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match=r"data\.train"):
        find_files([pattern])


def test_a_table_without_line_breaks_and_a_damaged_archive_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"prompt,completion\ra,b\r")
    with pytest.raises(InputError, match="no table"):
        list(read_chunks(tmp_path / "rows.csv", container_of(tmp_path / "rows.csv")))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n')[:8] + b"xxxxxxxx")
    with pytest.raises(InputError, match=r"rows\.jsonl\.gz: (?!empty)"):
        container_of(tmp_path / "rows.jsonl.gz")
