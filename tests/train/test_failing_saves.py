"""A disk that refuses, wherever it does: the last good checkpoint is kept, the run says so, and goes on or ends."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_disk import FaultyDisk, words_of
from tests.scenario import wait_until
from tests.train.forking import Forker
from tests.train.launch import Run, assert_same

# What fails in which save: the call, the error, and the path below the staged checkpoint.
FAULTS = [
    ("mkdir", errno.EROFS, ""),
    ("mkdir", errno.EDQUOT, "/state"),
    ("create", errno.EROFS, "/state/shard-00001-*"),
    ("create", errno.EDQUOT, "/state/shard-00002-*"),
    ("create", errno.EACCES, "/state/shard-00002-*"),
    ("create", errno.EAGAIN, "/state/shard-00001-*"),
    ("write", errno.ENOSPC, "/state/shard-00001-*"),
    ("write", errno.EDQUOT, "/state/shard-00002-*"),
    ("write", errno.EIO, "/state/shard-00002-*"),
    ("fsync", errno.EIO, "/state/shard-00001-*"),
    ("fsync", errno.EDQUOT, "/state/shard-00002-*"),
    ("write", errno.ENOSPC, "/trainer_state.json"),
    ("fsync", errno.EIO, "/trainer_state.json"),
    ("read", errno.EIO, "/state/shard-00002-*"),
    ("write", errno.EDQUOT, "/.manifest.json.*"),
    ("fsync", errno.EIO, "/.manifest.json.*"),
    ("rename", errno.EIO, "/.manifest.json.*"),
    ("fsync", errno.EIO, "/state"),
    ("rename", errno.EROFS, ""),
]
STEPS = len(FAULTS) + 3
CHANGES = {
    "training.max_steps": STEPS,
    "checkpoint.every_steps": 1,
    "evaluation.every_steps": None,
    "evaluation.best_at_end": False,
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> FaultyDisk:
    return FaultyDisk(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def forker(disk: FaultyDisk) -> Iterator[Forker]:
    """What forks ranks that have the disk."""
    forker = Forker(disk.environment)
    yield forker
    forker.end()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, forker: Forker) -> Run:
    run = Run(tmp_path_factory.mktemp("reference") / "run", CHANGES)
    run.forker = forker
    assert run.train(2)["outcome"] == "finished", run.log()
    return run


def new_run(uninterrupted: Run, path: Path, forker: Forker, **changes: Any) -> Run:
    run = Run(path, CHANGES | changes)
    run.forker = forker
    (path / "prepared").symlink_to(uninterrupted.folder.prepared_dir)
    return run


def staged(step: int, below: str = "") -> str:
    return f"*/.staging-step-{step}.*{below}" if below else f"*/.staging-step-{step}.[0-9]*[0-9]"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["waited for", "beside the training"])
def test_every_save_that_the_disk_refuses_is_told_and_costs_nothing(
    uninterrupted: Run, disk: FaultyDisk, forker: Forker, tmp_path: Path, asynchronous: bool
) -> None:
    run = new_run(uninterrupted, tmp_path / "run", forker, **{"checkpoint.asynchronous": asynchronous})
    refused = dict(enumerate(FAULTS, 2))
    disk.refuse(
        *((call, number, staged(step, below)) for step, (call, number, below) in refused.items()),
        ("rename", errno.EIO, "*/checkpoints/step-1"),  # which is to be deleted in the end
    )
    outcome = run.train(2)
    disk.heal()
    assert outcome["outcome"] == "finished", run.log()
    told = {event["step"]: event["problem"] for event in run.events("save_failed")}
    assert told == {step: words_of(number) for step, (_, number, _) in refused.items()}
    assert (
        f"WARNING: step 3 could not be saved: {words_of(errno.EDQUOT)}. step-1 is kept; training goes on" in run.log()
    )
    assert [event["step"] for event in run.events("saved")] == [1, STEPS - 1, STEPS]
    assert run.checkpoints() == ["step-1", f"step-{STEPS - 1}", f"step-{STEPS}"]
    assert f"WARNING: old checkpoints could not be deleted: {words_of(errno.EIO)}" in run.log()
    assert_same(run, uninterrupted)


def test_a_final_save_that_the_disk_refuses_to_the_end_ends_the_run_which_goes_on_when_it_can(
    uninterrupted: Run, disk: FaultyDisk, forker: Forker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCGEMMA_NOTICE_S", "0.5")
    run = new_run(uninterrupted, tmp_path / "run", forker)
    for call, number, path, kind, hint in (
        ("write", errno.ESTALE, staged(STEPS, "/state/shard-00001-*"), "file_system", "tell the site"),
        ("write", errno.ENOSPC, staged(STEPS, "/state/shard-00002-*"), "disk", "hpcgemma resume"),
        ("read", errno.EIO, f"*/step-{STEPS}/state/*", "disk", "hpcgemma resume"),  # what is read back
        # After the rename: it is there, but may not outlive a crash.
        ("fsync", errno.EIO, "*/checkpoints", "disk", "hpcgemma resume"),
    ):
        disk.refuse((call, number, path))
        outcome = run.train(2)
        disk.heal()
        assert (outcome["outcome"], outcome["kind"]) == ("failed", kind), run.log()
        assert f"step {STEPS} could not be saved in {run.folder.checkpoints_dir}: " in outcome["sentence"]
        assert words_of(number) in outcome["sentence"]
        assert "after one try" in outcome["sentence"]
        assert hint in outcome["hint"]
    assert run.train(2)["outcome"] == "finished", run.log()
    assert_same(run, uninterrupted)


def wait_for_refusals(run: Run, count: int) -> None:
    wait_until(f"{count} refusals", lambda: len(run.events("save_failed")) >= count)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["waited for", "beside the training"])
def test_the_save_before_a_stop_is_tried_again_until_the_disk_takes_it(
    uninterrupted: Run, disk: FaultyDisk, forker: Forker, tmp_path: Path, asynchronous: bool
) -> None:
    changes = {"checkpoint.asynchronous": asynchronous, "checkpoint.every_steps": 1000}
    run = new_run(uninterrupted, tmp_path / "run", forker, **changes)
    for call, number, path in (
        ("write", errno.ESTALE, "*/.staging-*/state/shard-00002-*"),  # of rank 1, and rank 0 decides
        ("mkdir", errno.ETIMEDOUT, "*/.staging-*"),
        ("read", errno.EIO, "*/step-*/state/*"),  # what is read back
    ):
        before = len(run.events("save_failed"))
        disk.refuse((call, number, path))
        run.fork(2)
        run.wait_for_step(0)
        run.send(signal.SIGTERM, 0, 1)
        wait_for_refusals(run, before + 2)
        disk.heal()
        run.wait()
        outcome = run.outcome()
        assert outcome["outcome"] == "stopped", run.log()
        told = run.events("save_failed")[before:]
        assert [event["tries"] for event in told] == list(range(1, len(told) + 1))
        assert [event["again_in_s"] for event in told[:2]] == [1.0, 2.0]
        assert words_of(number) in told[0]["problem"]
        saved = run.events("saved")[-1]
        assert saved["step"] == outcome["step"] == told[0]["step"]
        assert saved["time"] > told[-1]["time"]
        assert not list(run.folder.checkpoints_dir.glob(".staging-*"))
        set_aside = list(run.folder.checkpoints_dir.glob(f"bad-step-{outcome['step']}*"))
        assert len(set_aside) == (call == "read")  # of two that did not read back, one is kept to be looked at
    assert run.train(2)["outcome"] == "finished", run.log()
    assert_same(run, uninterrupted)
