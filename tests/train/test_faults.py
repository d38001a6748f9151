"""A few of the trials of tests/faults, which are made by the hundred outside `make test`."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from hpcgemma.train.failures import OvertakenError
from tests.faults.checkpoint_layer import Layer
from tests.faults.kill_runs import Bench, kill
from tests.train.forking import Forker
from tests.train.launch import Run


def test_a_process_that_is_killed_while_it_saves_leaves_a_checkpoint_that_can_be_resumed(tmp_path: Path) -> None:
    trials = [sys.executable, "-m", "tests.faults.kill_checkpoints", "--trials", "15", "--folder", str(tmp_path)]
    done = subprocess.run(trials, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("15 of 15 kills of the checkpoint layer: 0 failed"), f"{done.stdout}{done.stderr}"


def test_a_run_that_is_killed_at_random_moments_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    Run.forker = Run.forker or Forker()
    outcome = kill(Bench(tmp_path, Run.forker), "killed", random.Random(0))
    assert not outcome["failed"], outcome["problem"]


def test_an_attempt_that_was_given_up_and_lives_on_writes_no_checkpoint_any_more(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    first, second = Layer(tmp_path / "run"), Layer(tmp_path / "run")
    first.resume(attempt=1)
    first.save(1)
    assert second.resume(attempt=2) == 1
    with pytest.raises(
        OvertakenError, match="attempt 2 goes on with this run; attempt 1 writes no checkpoint any more"
    ):
        first.save(2)
    second.save(2)
    assert Layer(tmp_path / "run").resume(attempt=3) == 2
