"""Rows are tokenized in one pass: the same result by one process or several, in any chunks, and in flat memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcgemma.recipes.types import DataSpec
from hpcgemma.rows.formats import Layout
from hpcgemma.train.data import cache, selection
from hpcgemma.train.data.bad_row_report import BadRowReport
from hpcgemma.train.data.buckets import Buckets
from hpcgemma.train.data.selection import COPY, RowIndex, find_copies
from hpcgemma.train.data.tokenizing import HELD_OUT, INDEX, SourceFile
from hpcgemma.train.prepare import prepare
from tests.train.launch import Run


def write_rows(path: Path, count: int) -> str:
    rows = ({"prompt": f"number {index}", "completion": f"yes {index * 7}"} for index in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def copies_in(folder: Path, *rows: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Return the copies among rows (part, high and low half of the digest), each with the line of its first."""
    index_N = np.zeros(len(rows), INDEX)
    for place, row in enumerate(rows):
        index_N[place]["part"], index_N[place]["digest"], index_N[place]["digest_low"] = row
        index_N[place]["line"] = place
    folder.mkdir()
    (folder / "index.bin").write_bytes(index_N.tobytes())
    index = RowIndex(folder / "index.bin")
    with Buckets(folder / "copies", len(index), COPY) as copies:
        find_copies(index, copies, folder)
        return sorted((int(each["row"]), int(each["first_line"])) for some in copies for each in some)


def test_several_processes_give_the_same_bytes_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"data.generator": None, "data.format": "auto", "data.train": write_rows(tmp_path / "rows.jsonl", 3000)}
    one = Run(tmp_path / "one" / "run", changes)
    prepare(one.folder)
    monkeypatch.setattr("hpcgemma.train.prepare.WORKERS_FROM_BYTES", 0)
    monkeypatch.setattr("hpcgemma.train.prepare.cores", lambda: 2)
    two = Run(tmp_path / "two" / "run", changes)
    prepare(two.folder)
    for path in one.folder.prepared_dir.rglob("*"):
        if path.is_file() and path.name != "summary.json":
            assert (
                path.read_bytes() == (two.folder.prepared_dir / path.relative_to(one.folder.prepared_dir)).read_bytes()
            )


def test_a_copy_points_at_the_first_of_its_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = 1 << 63  # the highest bits choose the bucket
    rows = ((0, 5, 5), (HELD_OUT, 5, 5), (1, 5, 5), (0, 5, 6), (0, top, 5), (HELD_OUT, 5, 5), (0, top, 5))
    expected = [(2, 0), (5, 1), (6, 4)]
    assert copies_in(tmp_path / "one", *rows) == expected
    monkeypatch.setattr(selection, "ROWS_AT_ONCE", 2)
    assert copies_in(tmp_path / "several", *rows) == expected
    assert copies_in(tmp_path / "none") == []


def test_rows_in_many_blocks_give_the_same_bytes_as_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [f"number {index % 700} {index % 3}" for index in range(2000)]
    rows = [{"prompt": text[:-2], "completion": f"yes {text}"} for text in drawn]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:1500]))
    (tmp_path / "held.jsonl").write_text("\n".join(json.dumps(row) for row in rows[1400:]))
    given: dict[str, Any] = {"data.generator": None, "data.format": "auto", "data.train": str(tmp_path / "rows.jsonl")}
    for name, changes in {
        "share": given,
        "given": given | {"data.eval": str(tmp_path / "held.jsonl")},
        "copies": given | {"data.eval": str(tmp_path / "held.jsonl"), "data.deduplicate": False},
        "none": given | {"data.eval_share": 1e-9},
        "all": given | {"data.eval_share": 0.99999},
    }.items():
        runs = []
        for at_once in (1 << 16, 64):
            monkeypatch.setattr(selection, "ROWS_AT_ONCE", at_once)
            run = Run(tmp_path / f"{name}-{at_once}" / "run", changes)
            summary = prepare(run.folder)
            files = {
                str(path.relative_to(run.folder.prepared_dir)): path.read_bytes()
                for path in run.folder.prepared_dir.rglob("*")
                if path.is_file() and path.name != "summary.json"
            }
            runs.append((summary["counts"], summary["train"], summary["eval"], files))
        assert runs[0] == runs[1], name


def peak_of_selecting(folder: Path, rows: int) -> int:
    """Return the most bytes in use while it is decided which of so many rows are trained on; a tenth are copies."""
    folder.mkdir()
    random = np.random.default_rng(0)
    with (folder / "index.bin").open("wb") as file:
        for _ in range(0, rows, 5000):
            index_N = np.zeros(5000, INDEX)
            index_N["length"], index_N["targets"] = 20, 10
            for name in ("digest", "question"):
                index_N[name] = random.integers(0, 1 << 64, 5000, np.uint64)
            index_N["digest"][:500] = index_N["digest"][500:1000]
            file.write(index_N.tobytes())
    files = [SourceFile("rows.jsonl", 0, Layout("text", {}, ""))]
    with BadRowReport(folder / "bad_rows.jsonl") as report:
        tracemalloc.start()
        found = selection.select_rows(
            RowIndex(folder / "index.bin"), files, DataSpec(), folder, report, lambda rows: None, holds_out_share=True
        )
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert found.counts["duplicates"] == rows // 10
    return peak


def test_ten_times_the_rows_take_no_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "ROWS_AT_ONCE", 2000)
    few, many = peak_of_selecting(tmp_path / "few", 20_000), peak_of_selecting(tmp_path / "many", 200_000)
    assert many < few + (4 << 20)  # more buckets are open files with small buffers


def test_many_jobs_that_want_the_same_data_prepare_it_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hpcgemma.train.data import cache\n"
        "root = Path(sys.argv[1])\n"
        "def build(folder):\n"
        "    (folder / 'content').write_text('whole')\n"
        "    with (root / 'builds').open('a') as file: file.write('x')\n"
        "print(cache.obtain(root / '.prepared', 'key', build, lambda folder: (folder / 'content').exists(), print))"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    jobs = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [job.communicate(timeout=60)[0].splitlines()[-1] for job in jobs]
    assert said == [str(tmp_path / ".prepared" / "key")] * 4
    assert (tmp_path / "builds").read_text() == "x"
    assert [path.name for path in (tmp_path / ".prepared").iterdir()] == ["key"]


def test_a_lock_whose_holder_is_gone_is_taken_over(tmp_path: Path) -> None:
    lock = tmp_path / "key.lock"
    lock.write_text("process 1 on a node that was lost")
    old = time.time() - cache.STALE_S - 1
    os.utime(lock, (old, old))
    folder = cache.obtain(tmp_path, "key", lambda each: (each / "a").touch(), lambda each: True, print)
    assert (folder / "a").exists()
    assert not lock.exists()


def test_a_failed_preparation_leaves_neither_lock_nor_folder(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        cache.obtain(tmp_path / "cache", "key", fail, lambda each: True, print)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_folder_that_no_run_links_is_removed_when_it_is_old(tmp_path: Path) -> None:
    for name in ("unused", "linked", "young"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").touch()
    (tmp_path / "run").hardlink_to(tmp_path / "linked" / "a")
    old = time.time() - (cache.UNUSED_DAYS + 1) * 86400
    for name in ("unused", "linked"):
        os.utime(tmp_path / name, (old, old))
    cache.obtain(tmp_path, "key", lambda each: None, lambda each: True, print)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "linked", "run", "young"]


def test_workers_do_not_outlive_a_preparation_that_is_killed(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    write_rows(rows, 200_000)
    changes = {"data.generator": None, "data.format": "auto", "data.train": str(rows)}
    run = Run(tmp_path / "run", changes)
    process = subprocess.Popen([sys.executable, "-m", "hpcgemma.train.prepare", str(run.folder.path)])
    try:
        children: list[int] = []
        deadline = time.monotonic() + 60
        while len(children) < 2 and process.poll() is None and time.monotonic() < deadline:
            children = [
                int(each) for each in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            ]
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert children
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in children)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
