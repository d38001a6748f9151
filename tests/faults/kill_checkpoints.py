"""Kill a process that saves checkpoint after checkpoint, at random moments, and resume from what it left.

Each trial is a fork: it resumes, and saves step after step with the code that trains, until it is killed. Then the
newest checkpoint is found, verified and loaded by the same code. A trial fails where that is not possible, where the
contents are not those of the step, bit by bit, where a step is lost that was known to be saved, or where a damaged
checkpoint was left under a good one's name.

With ``--asynchronous`` the saves are written beside, each while the next step's tensors are made.

Run as ``python -m tests.faults.kill_checkpoints --trials 1000 --folder FOLDER``.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from tests.faults.checkpoint_layer import Layer
from tests.faults.trials import Trials, arguments

MOST_SAVES = 3
"""Saves before the one in which the process is killed, at most."""
PATIENCE_S = 60.0
"""Seconds after which a process that has not saved is killed all the same."""
TYPICAL_S = 0.03
"""Seconds of a save, or a resume, before one was measured."""
WORDS = struct.Struct("qqd")
"""What the saving process tells: the newest step that it knows to be saved, 1 once it has resumed and 1 for each save
since, and the seconds of the last save."""
TRIALS_A_RUN = 100
"""Kills that one run folder survives."""


def main() -> None:
    """Make the trials that are left, and print what came of all."""
    options = arguments(__doc__, trials=1000, more=_add_way)
    name = "kill_checkpoints_beside" if options.asynchronous else "kill_checkpoints"
    torch.set_num_threads(1)
    trials = Trials(options.folder / f"{name}.jsonl", options.trials)
    for trial in trials.left():
        path = options.folder / name / f"run-{trial // TRIALS_A_RUN}"
        path.mkdir(parents=True, exist_ok=True)
        chance = random.Random(f"{options.seed}/{trial}")
        trials.note(trial, kill(path, chance, asynchronous=options.asynchronous))
    what = "kills of the checkpoint layer" + (", saves written beside" if options.asynchronous else "")
    sys.exit(trials.summarize(what, by="killed while"))


def _add_way(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--asynchronous", action="store_true", help="write beside")


def kill(path: Path, chance: random.Random, *, asynchronous: bool = False) -> dict[str, Any]:
    """Let a process save into a run folder, kill it, resume, and return what happened."""
    with mmap.mmap(-1, WORDS.size) as shared:
        began = time.monotonic()
        pid = os.fork()
        if not pid:
            _save_until_killed(path, shared, asynchronous)
        saves = chance.randint(-1, MOST_SAVES)  # -1: while it resumes
        while WORDS.unpack(shared[:])[1] <= saves and time.monotonic() < began + PATIENCE_S:
            time.sleep(0.001)
        took_s = WORDS.unpack(shared[:])[2] or TYPICAL_S
        time.sleep(chance.uniform(0, 1.2 * took_s))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        saved, *_ = WORDS.unpack(shared[:])
        has_resumed = WORDS.unpack(shared[:])[1] > 0
    outcome: dict[str, Any] = {
        "life_s": round(time.monotonic() - began, 4),
        "saved": saved,
        "killed while": _phase(path / "checkpoints", has_resumed=has_resumed),
    }
    problem = None if os.waitstatus_to_exitcode(status) == -signal.SIGKILL else "the saving process ended by itself"
    return outcome | _resumed(path, saved, problem)


def _save_until_killed(path: Path, shared: mmap.mmap, asynchronous: bool) -> None:
    """Save step after step; the process that calls this never returns."""
    try:
        with _silence():
            layer = Layer(path, asynchronous=asynchronous)
            step, done, took_s = layer.resume(), 1, 0.0
            while True:
                shared[:] = WORDS.pack(layer.saved_step(), done, took_s)
                began = time.monotonic()
                (layer.save if asynchronous else layer.save_at_last)(step + 1)
                step, done, took_s = step + 1, done + 1, time.monotonic() - began
    except BaseException:  # noqa: BLE001 - no exception may reach what this process was forked from
        traceback.print_exc()
    os._exit(1)


def _resumed(path: Path, saved: int, problem: str | None) -> dict[str, Any]:
    try:
        with _silence():
            layer = Layer(path)
            step = layer.resume()
    except Exception as error:  # noqa: BLE001 - whatever it is, the trial has failed
        return {"failed": True, "problem": f"{type(error).__name__}: {error}"}
    if step < saved:
        problem = f"step {saved} was saved, and resumed was step {step}"
    elif step and not layer.is_at(step):
        problem = f"the contents are not those of step {step}"
    elif damaged := sorted(each.name for each in (path / "checkpoints").glob("bad-*")):
        problem = f"damaged checkpoints were left: {damaged}"
    return {"failed": problem is not None, "resumed": step, "problem": problem}


def _phase(directory: Path, *, has_resumed: bool) -> str:
    """Return what a process was doing when it was killed, from what it left."""
    left = list(directory.glob(".staging-*")) if directory.is_dir() else []
    if any("deleted" in each.name for each in left):
        return "deleting an old one"
    for staging in left:
        if (staging / "manifest.json").exists():
            return "all written, not renamed"
        if (staging / "trainer_state.json").exists():
            return "flushing and describing"
        return "writing weights" if any(staging.glob("state/*")) else "making the folder"
    return "between two saves, or reading back" if has_resumed else "resuming"


@contextlib.contextmanager
def _silence() -> Any:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


if __name__ == "__main__":
    main()
