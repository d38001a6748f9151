"""A full disk and a read-only folder: the last good checkpoint stays, and the user is told."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcgemma import checkpoints
from tests.scenario import Terminal, Training, assert_same_training, wait_until
from tests.small_disk import NoDiskError, fill, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB of the test's own."""
    try:
        with small_disk(tmp_path / "disk") as folder:
            yield folder
    except NoDiskError as error:
        pytest.skip(f"{error}")


def sound_checkpoints(run: Training) -> list[int]:
    """Return the steps of the checkpoints that have a manifest."""
    return sorted(int(path.parent.name.split("-")[1]) for path in run.folder.glob("checkpoints/step-*/manifest.json"))


def test_a_disk_that_fills_up_costs_no_checkpoint_and_the_run_is_resumed_when_there_is_room(
    terminal: Terminal, reference: Training, disk: Path
) -> None:
    run = terminal.submit("full-disk", "local", "--runs-dir", str(disk / "runs"))
    run.wait_for_step(45)
    run.freeze()
    before = sound_checkpoints(run)
    filler = fill(disk)
    run.thaw()
    said = wait_until("the end", lambda: (said := run.status())["state"] == "FAILED" and said)
    assert said["sentence"] == "nothing more could be written: No space left on device"
    assert "free some space" in said["hint"]
    assert sound_checkpoints(run) == before
    filler.unlink()
    terminal.call("resume", run.name)
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert_same_training(run, reference)


def test_a_run_folder_that_cannot_be_written_is_refused_before_anything_is_submitted(
    terminal: Terminal, disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    done = terminal.call(
        "submit",
        "--profile",
        "local",
        "--recipe",
        "svg_captions_tiny",
        "--name",
        "read-only",
        "--runs-dir",
        str(disk / "runs"),
        code=2,
    )
    assert "cannot be created: Read-only file system" in done.stderr
    assert "Try:   choose another folder with --runs-dir or HPCGEMMA_RUNS_DIR" in done.stderr


def save(disk: Path, step: int, size: int) -> None:
    staging = checkpoints.stage(disk, step)
    (staging / "model.safetensors").write_bytes(bytes(size))
    checkpoints.commit(staging, step=step, samples=step, run_id="run", recipe_fingerprint="f", world_size=1)


def test_a_checkpoint_for_which_there_is_no_room_leaves_the_one_before(disk: Path) -> None:
    save(disk, 10, 1 << 20)
    with pytest.raises(OSError, match="No space left on device"):
        save(disk, 20, 32 << 20)
    latest = checkpoints.latest_checkpoint(disk)
    assert latest is not None
    assert latest.step == 10
    save(disk, 30, 1 << 20)  # which also removes what the failed one left
    assert sorted(path.name for path in disk.iterdir()) == ["step-10", "step-30"]


def test_on_a_disk_that_has_become_read_only_a_checkpoint_can_still_be_chosen(disk: Path) -> None:
    save(disk, 10, 1 << 20)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(OSError, match="Read-only file system"):
        save(disk, 20, 1 << 20)
    latest = checkpoints.latest_checkpoint(disk)
    assert latest is not None
    assert latest.step == 10
