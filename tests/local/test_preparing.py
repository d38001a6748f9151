"""`hpcgemma data prepare` when it is interrupted, cancelled, or finds no room: nothing half-made is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.scenario import RECIPE, Terminal, wait_until
from tests.small_disk import fill

from .test_disks import disk as disk  # the fixture

PREPARE = ("data", "prepare", "--recipe", str(RECIPE))


@pytest.fixture
def many_rows(tmp_path: Path) -> tuple[str, ...]:
    """Settings for so many rows that worker processes tokenize them."""
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(36_000):
            file.write(json.dumps({"prompt": f"number {number} " * 6, "completion": f"yes {number}"}) + "\n")
    return ("--set", "data.generator=null", "--set", "data.format=auto", "--set", f"data.train={path}")


def begun(runs: Path, process: subprocess.Popen[str]) -> list[Path]:
    """Return the staged tokens, once there are some."""
    if process.poll() is not None:
        raise AssertionError(process.communicate())
    return [path for path in runs.glob(".prepared/.*/ids.bin") if path.stat().st_size]


def members(group: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of_group = (path / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(of_group) == group and state not in "ZX":
            found.append(int(path.name))
    return found


def test_ctrl_c_leaves_neither_half_made_data_nor_workers_and_the_next_call_works(
    terminal: Terminal, tmp_path: Path, many_rows: tuple[str, ...]
) -> None:
    runs = tmp_path / "runs"
    process = terminal.start(*PREPARE, *many_rows, "--runs-dir", str(runs))
    wait_until("some tokens", lambda: begun(runs, process))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to all processes
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: nothing half-made is left, and the same command begins anew" in said
    assert "Traceback" not in said
    assert list((runs / ".prepared").iterdir()) == []
    wait_until("the end of all processes", lambda: not members(process.pid))
    assert "prepared in" in terminal.call(*PREPARE, *many_rows, "--runs-dir", str(runs)).stdout
    assert len(list((runs / ".prepared").iterdir())) == 1


def test_a_cancelled_preparation_cleans_up_and_ends_by_the_signal(
    terminal: Terminal, tmp_path: Path, many_rows: tuple[str, ...]
) -> None:
    runs = tmp_path / "runs"
    process = terminal.start(*PREPARE, *many_rows, "--runs-dir", str(runs))
    wait_until("some tokens", lambda: begun(runs, process))
    [program] = [pid for pid in members(process.pid) if b"commands.data" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(program, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert list((runs / ".prepared").iterdir()) == []
    wait_until("the end of all processes", lambda: not members(process.pid))


def test_a_worker_that_is_killed_ends_the_preparation_with_a_reason(
    terminal: Terminal, tmp_path: Path, many_rows: tuple[str, ...]
) -> None:
    runs = tmp_path / "runs"
    process = terminal.start(*PREPARE, *many_rows, "--runs-dir", str(runs))
    wait_until("some tokens", lambda: begun(runs, process))
    workers = [pid for pid in members(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Error: a process that tokenizes was killed, as happens where memory runs out" in said
    assert list((runs / ".prepared").iterdir()) == []


def test_what_a_killed_preparation_has_left_is_taken_over_at_once(
    terminal: Terminal, tmp_path: Path, many_rows: tuple[str, ...]
) -> None:
    runs = tmp_path / "runs"
    process = terminal.start(*PREPARE, *many_rows, "--runs-dir", str(runs))
    wait_until("some tokens", lambda: begun(runs, process))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_until("the end of all processes", lambda: not members(process.pid))
    [left] = runs.glob(".prepared/.*")
    again = terminal.start(*PREPARE, *many_rows, "--runs-dir", str(runs))
    wait_until("tokens of the second", lambda: [path for path in begun(runs, again) if path.parent != left])
    assert not left.exists()
    os.killpg(again.pid, signal.SIGINT)
    _, said = again.communicate(timeout=60)
    assert "waiting for another job" not in said


def test_a_full_disk_is_said_and_leaves_nothing_and_with_room_the_next_call_works(
    terminal: Terminal, disk: Path
) -> None:
    runs = disk / "runs"
    (runs / ".prepared").mkdir(parents=True)
    filler = fill(disk)
    for free in (0, 1 << 16):
        os.truncate(filler, filler.stat().st_size - free)
        done = terminal.call(*PREPARE, "--runs-dir", str(runs), code=1)
        assert "Error: the disk refused: [Errno 28] No space left on device" in done.stderr
        assert "Try:   free some space or raise the quota, then call it again" in done.stderr
        assert "Traceback" not in done.stderr
        assert list((runs / ".prepared").iterdir()) == []
    filler.unlink()
    terminal.call(*PREPARE, "--runs-dir", str(runs))
