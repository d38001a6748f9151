"""Rows 9, 10, 14 and 27: disks that refuse or are slow, checkpoints that are damaged or have wrong times."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hpcgemma.checkpoints import find_checkpoints, latest_checkpoint
from tests.faulty_disk import FaultyDisk, words_of
from tests.scenario import Training, wait_until
from tests.slurm.login import nodes_of
from tests.small_disk import fill, small_disk

from .lab import Lab
from .observation import Observation

REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_HOLE = 4096


def refusing_disk(lab: Lab) -> Observation:
    """The disk refuses one save after the other: full, over quota, read-only, EIO."""
    disk = lab.disk()
    run = lab.submit("refusing-disk", profile=lab.profile("faulty_disk", env=disk.environment))
    faults = []
    for count, number in enumerate(REFUSALS, start=1):
        run.wait_for_step(20 * count - 15)
        faults.append(time.time())
        disk.refuse(("write", number, "*/.staging-*"), ("create", number, "*/.staging-*"))
        failed = run.wait_for_event("save_failed", count=count)
        assert words_of(number) in failed["problem"]
        disk.heal()
    seen = lab.completed(run, "each cost its own save, told in a sentence; the training went on", faults)
    assert len(run.events("started")) == 1
    return seen


def gone_at_the_last_save(lab: Lab) -> Observation:
    """The file server is away for two tries of a preempted run's save, 15 steps after the last checkpoint."""
    disk, run, fault = _gone_when_preempted(lab, "gone-server")
    refused = run.wait_for_event("save_failed", count=2)
    run.freeze()
    said = run.status()["sentence"]
    disk.heal()
    run.thaw()
    assert (refused["errno"], refused["tries"], refused["again_in_s"]) == ("ESTALE", 2, 2.0)
    assert (
        said == f"saving; the disk refused 2 times ({words_of(errno.ESTALE)}), and is tried again before the run stops"
    )
    happened = "refused, tried again after 1 and 2 s, saved; went on in a successor"
    seen = lab.completed(run, happened, [fault])
    assert len(run.events("save_failed")) == 2
    ended = run.events("ended")[0]
    assert (ended["ending"], ended["cause"], ended["step"]) == ("stopped", "preempted", refused["step"])
    assert run.events("resumed")[0]["step"] == ended["step"]
    return seen


def gone_for_the_whole_notice(lab: Lab) -> Observation:
    """The file server is away until no try fits in the notice any more."""
    disk, run, fault = _gone_when_preempted(lab, "gone-long")
    ended = run.wait_for_event("ended")
    disk.heal()
    assert ended["ending"] == "file_system"
    assert [event["tries"] for event in run.events("save_failed")] == [1, 2, 3, 4]
    return lab.completed(run, "given up after 4 tries in 7 s; relaunched from the checkpoint before", [fault], lost=30)


def _gone_when_preempted(lab: Lab, name: str) -> tuple[FaultyDisk, Training, float]:
    """Preempt a run whose checkpoints go to a file server that is gone from now on; return disk, run and moment."""
    disk = lab.disk()
    run = lab.submit(name, profile=lab.profile("gone_server", env=disk.environment))
    run.wait_for_step(35)
    run.freeze()
    fault = time.time()
    disk.refuse(("write", errno.ESTALE, "*/.staging-*"), ("create", errno.ESTALE, "*/.staging-*"))
    lab.cluster.urgent_job(nodes=nodes_of(lab.cluster, run.job_id), seconds=5)
    return disk, run, fault


def full_disk(lab: Lab) -> Observation:
    """A real disk of 24 MB is full to the last byte from one step on."""
    with small_disk(lab.folder / f"disk-{lab.tracking}") as disk:
        run = lab.submit("full-disk", "--runs-dir", str(disk))
        run.wait_for_step(45)
        run.freeze()
        before = [each.step for each in find_checkpoints(run.folder / "checkpoints")]
        filler, fault = fill(disk), time.time()
        run.thaw()
        said = wait_until("the end", lambda: (said := run.status())["state"] == "FAILED" and said)
        assert said["sentence"] == "nothing more could be written: No space left on device"
        assert [each.step for each in find_checkpoints(run.folder / "checkpoints")] == before
        filler.unlink()
        lab.login.call("resume", run.name)
        return lab.completed(run, f"FAILED: {said['sentence']}; `hpcgemma resume` went on", [fault], lost=80)


def slow_disk(lab: Lab) -> Observation:
    """Every flush to the disk takes a second."""
    disk = lab.disk()
    disk.delay(1.0, ("fsync", "*/checkpoints/*"))
    run = lab.submit("slow-disk", profile=lab.profile("slow_disk", env=disk.environment))
    seen = lab.completed(run, "", [])
    disk.heal()
    slowest = max(event["seconds"] for event in run.events("saved"))
    assert slowest > 1
    return replace(seen, happened=f"saves took up to {slowest:.0f} s, and nothing else changed")


def damaged(lab: Lab) -> Observation:
    """The newest checkpoint of a run, each of its files in turn cut, emptied, flipped, holed or missing."""
    run = lab.submit("damaged", "--set", "checkpoint.every_steps=10")
    run.wait_for_step(45)
    cancel(lab, run)
    folder = run.folder / "checkpoints"
    newest = find_checkpoints(folder)[-1]
    files = sorted(path.relative_to(newest.path) for path in newest.path.rglob("*") if path.is_file())
    found = 0
    for file in files:
        for damage in DAMAGES:
            copy = lab.folder / "damaged"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            damage(copy / newest.path.name / file)
            chosen = latest_checkpoint(copy)
            assert chosen is not None
            assert chosen.step < newest.step, f"{damage.__name__} of {file} was not found"
            found += 1
    _hole(max((newest.path / file for file in files), key=lambda path: path.stat().st_size))
    lab.login.call("resume", run.name)
    fault = time.time()
    happened = f"{found} of {found} damages found; set aside, and the checkpoint before was used"
    seen = lab.completed(run, happened, [fault], lost=20)
    [aside] = run.events("set_aside")
    assert newest.path.name in aside["checkpoint"]
    return seen


def wrong_times(lab: Lab) -> Observation:
    """Clocks differ: the older checkpoint's files are an hour newer than those of the newest."""
    run = lab.submit("wrong-times", "--set", "checkpoint.every_steps=10")
    run.wait_for_step(45)
    cancel(lab, run)
    older, newest = find_checkpoints(run.folder / "checkpoints")[-2:]
    now = time.time()
    for checkpoint, moment in ((older, now + 3600), (newest, now - 3600)):
        for path in [checkpoint.path, *checkpoint.path.rglob("*")]:
            os.utime(path, (moment, moment))
    lab.login.call("resume", run.name)
    seen = lab.completed(run, "the newest is that of the highest step", [now], lost=10)
    assert run.events("resumed")[-1]["step"] == newest.step
    return seen


def cancel(lab: Lab, run: Training) -> None:
    """Cancel a run where it stands."""
    run.freeze()
    lab.login.call("cancel", run.name)
    run.thaw()
    wait_until("the end", lambda: run.status()["state"] == "CANCELLED")


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _hole(path: Path) -> None:
    size = min(_HOLE, path.stat().st_size)
    with path.open("r+b") as file:
        file.seek((path.stat().st_size - size) // 2)
        file.write(bytes(size))


def _remove(path: Path) -> None:
    path.unlink()


DAMAGES: tuple[Callable[[Path], None], ...] = (_cut, _empty, _flip, _hole, _remove)
