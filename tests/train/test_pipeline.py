"""Rows are tokenized in one pass: the same result by one process or several, in any chunks, and in flat memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpcgemma.train.data import cache, pipeline
from hpcgemma.train.data.pipeline import first_copies
from hpcgemma.train.data.tokenizing import HELD_OUT, INDEX
from hpcgemma.train.prepare import prepare
from tests.train.launch import Run


def write_rows(path: Path, count: int) -> str:
    rows = ({"prompt": f"number {index}", "completion": f"yes {index * 7}"} for index in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def index_of(*rows: tuple[int, int, int]) -> Any:
    """Return an index of rows given by part, high and low half of their digest."""
    found = np.zeros(len(rows), INDEX)
    for place, (part, digest, low) in enumerate(rows):
        found[place]["part"], found[place]["digest"], found[place]["digest_low"] = part, digest, low
    return found


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


def test_a_copy_points_at_the_first_of_its_side(monkeypatch: pytest.MonkeyPatch) -> None:
    index_N = index_of((0, 5, 5), (HELD_OUT, 5, 5), (1, 5, 5), (0, 5, 6), (0, 8, 5), (HELD_OUT, 5, 5), (0, 8, 5))
    expected = [-1, -1, 0, -1, -1, 1, 4]
    assert first_copies(index_N).tolist() == expected
    monkeypatch.setattr(pipeline, "_DIGESTS_AT_ONCE", 2)
    assert first_copies(index_N).tolist() == expected
    assert first_copies(index_of()).tolist() == []


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
