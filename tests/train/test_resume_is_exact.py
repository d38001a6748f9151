"""Whatever interrupts a training, it ends with the weights and the losses of one that nothing interrupted."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.shared import made_once
from tests.train.launch import Run, assert_same


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    def make(folder: Path) -> None:
        assert Run(folder / "run").train(2)["outcome"] == "finished"

    return Run(made_once(tmp_path_factory, "uninterrupted", make) / "run")


def test_the_reference_took_all_steps_and_kept_the_newest_and_the_best(uninterrupted: Run) -> None:
    assert list(uninterrupted.losses()) == list(range(1, 62))
    assert list(uninterrupted.evaluations()) == [15, 30, 45, 60, 61]
    assert uninterrupted.outcome() == {
        "outcome": "finished",
        "step": 61,
        "samples": 488,
        "total_steps": 61,
        "signal": None,
    }
    assert uninterrupted.checkpoints() == ["step-60", "step-61"]


def test_a_stop_signal_to_one_rank_stops_all_and_the_resumed_run_is_the_same(
    uninterrupted: Run, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run")
    run.fork(2)
    run.wait_for_step(12)
    run.send(signal.SIGUSR2, 1)
    assert run.wait() == [0, 0]
    stopped = run.outcome()
    assert (stopped["outcome"], stopped["signal"]) == ("stopped", "SIGUSR2")
    assert run.events("saved")[-1]["step"] == stopped["step"] == max(run.losses())
    assert run.train(2)["outcome"] == "finished"
    assert run.first_step() == stopped["step"] + 1
    assert run.events("resumed")[0]["samples"] == 8 * stopped["step"]
    assert_same(run, uninterrupted)


def test_a_burst_of_signals_at_different_times_makes_one_stop(uninterrupted: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.fork(2)
    run.wait_for_step(5)
    run.send(signal.SIGTERM, 0)
    time.sleep(0.3)
    for _ in range(3):
        run.send(signal.SIGTERM, 1)
    assert run.wait() == [0, 0], run.log()
    stopped = run.outcome()
    assert (stopped["outcome"], stopped["signal"]) == ("stopped", "SIGTERM")
    assert len(run.events("saved")) == 1 + stopped["step"] // 10
    run.train(2)
    assert_same(run, uninterrupted)


def test_a_signal_while_loading_is_acted_on_at_the_first_boundary(uninterrupted: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.start(2)
    while not run.folder.heartbeat_file(0).exists():
        time.sleep(0.01)
    run.send(signal.SIGTERM, 0)
    assert run.wait() == [0, 0]
    assert (run.outcome()["outcome"], run.outcome()["step"]) == ("stopped", 0)
    run.train(2)
    assert_same(run, uninterrupted)


def test_a_killed_run_goes_on_from_its_last_checkpoint(uninterrupted: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.fork(2)
    run.wait_for_step(24)
    run.send(signal.SIGKILL, 0, 1)
    assert run.wait() == [-9, -9]
    assert not run.folder.outcome_file(1).exists()
    run.train(2)
    assert run.events("resumed")[0]["step"] % 10 == 0
    assert_same(run, uninterrupted)


def test_workers_that_get_the_signal_too_do_not_disturb_the_save(uninterrupted: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"data.num_workers": 1})
    run.start(2, start_new_session=True)
    run.wait_for_step(12)
    for rank in run.ranks:
        os.killpg(rank.pid, signal.SIGTERM)
    assert run.wait() == [0, 0], run.log()
    assert run.outcome()["outcome"] == "stopped"
    run.train(2)
    assert_same(run, uninterrupted)


def test_a_rank_that_lost_its_peer_says_so(uninterrupted: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.fork(2)
    run.wait_for_step(12)
    run.send(signal.SIGKILL, 1)
    assert run.wait() == [1, -9]
    assert run.outcome()["kind"] == "peer_lost"
    run.train(2)
    assert_same(run, uninterrupted)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    uninterrupted: Run, tmp_path: Path, damage: str
) -> None:
    run = uninterrupted.copy(tmp_path / "run")
    (run.folder.final_dir).rename(tmp_path / "final")
    newest = run.folder.checkpoints_dir / "step-61"
    victim = sorted((newest / "state").iterdir())[0]
    content = bytearray(victim.read_bytes())
    if damage == "truncated":
        victim.write_bytes(content[:-100])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "missing":
        victim.unlink()
    else:
        (newest / "manifest.json").unlink()
    run.train(2)
    assert run.events("set_aside")[0]["checkpoint"] == "bad-step-61"
    assert run.events("resumed")[0]["step"] == 60
    assert run.checkpoints() == ["bad-step-61", "step-60", "step-61"]
    assert_same(run, uninterrupted)


def test_with_four_ranks_the_first_step_after_a_resume_is_bitwise_the_same(tmp_path: Path) -> None:
    reference = Run(tmp_path / "reference", {"training.max_steps": 25})
    assert reference.train(4)["outcome"] == "finished"
    run = Run(tmp_path / "run", {"training.max_steps": 25})
    run.fork(4)
    run.wait_for_step(6)
    run.send(signal.SIGTERM, 2)
    assert run.wait() == [0, 0, 0, 0]
    assert run.outcome()["step"] < 25
    assert run.train(4)["outcome"] == "finished"
    assert_same(run, reference)


def test_another_number_of_ranks_goes_on_with_the_same_rows(uninterrupted: Run, tmp_path: Path) -> None:
    changes = {"training.max_steps": 20, "model.config.attention_dropout": 0.0}
    reference = Run(tmp_path / "reference", changes)
    reference.train(2)
    run = Run(tmp_path / "run", changes)
    run.fork(2)
    run.wait_for_step(5)
    run.send(signal.SIGTERM, 0)
    run.wait()
    run.train(1)
    expected = reference.losses()
    assert run.losses().keys() == expected.keys()
    for step, values in run.losses().items():
        assert values == pytest.approx(expected[step], rel=1e-4)
