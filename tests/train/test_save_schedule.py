"""As often as it is worth: the interval, its agreement, and that it does not touch what is trained."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from hpcgemma.errors import ConfigError
from hpcgemma.recipes import load_recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.environment import Environment, read_environment
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.save_schedule import SaveSchedule, best_interval_s
from tests.train.launch import Run, assert_same


class Training:
    """A training of one rank as the schedule sees it: steps and saves that take so many seconds."""

    def __init__(self, path: Path, *, step_s: float, save_s: float, every_steps: int | str = "auto") -> None:
        self.folder = RunFolder(path)
        path.mkdir(exist_ok=True)
        self.now, self.step = 0.0, 0
        self.step_s, self.save_s = step_s, save_s
        self.saved: list[int] = []
        place = Environment(rank=0, local_rank=0, world_size=1, attempt=1, device="cpu", interruption_every_h=24.0)
        self.schedule = SaveSchedule(
            every_steps,  # type: ignore[arg-type]
            0,
            self.folder,
            Ranks(place, torch.device("cpu")),
            interruption_every_h=24.0,
            clock=lambda: self.now,
        )

    def run(self, steps: int, *, best_at: int | None = None) -> list[int]:
        """Take steps, and return those that were saved."""
        for _ in range(steps):
            if self.schedule.is_due(self.step) or self.step == best_at:
                self.now += self.save_s
                self.saved.append(self.step)
                self.schedule.note_saved(self.step, self.save_s)
            self.step += 1
            self.now += self.step_s
        return self.saved


@pytest.mark.parametrize(("save_s", "hours", "interval_s"), [(10, 2, 379.5), (10, 24, 1314.5), (0.5, 24, 293.9)])
def test_the_interval_is_youngs(save_s: float, hours: float, interval_s: float) -> None:
    assert best_interval_s(save_s, hours) == pytest.approx(interval_s, abs=0.1)


def test_the_first_save_measures_and_the_next_ones_come_as_often_as_it_is_worth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # sqrt(2 x 2 s x 24 h) is 588 s: steps of a second, counted from the end of a save.
    assert Training(tmp_path, step_s=1, save_s=2).run(1800) == [10, 598, 1186, 1774]
    assert capsys.readouterr().out == (
        "checkpoints: every 588 s, about 588 steps, lose the least time: a save takes 2.00 s, and every 24 h something "
        "may end the run without warning\n"
    )


def test_a_dear_save_is_made_rarely_and_a_long_step_is_saved_often(tmp_path: Path) -> None:
    assert Training(tmp_path / "dear", step_s=1, save_s=200).run(6000) == [10, 5889]
    assert Training(tmp_path / "long", step_s=300, save_s=2).run(17) == [10, 12, 14, 16]


def test_steps_that_become_slower_are_noticed(tmp_path: Path) -> None:
    training = Training(tmp_path, step_s=1, save_s=2)
    training.run(100)
    training.step_s = 20
    # At step 210 rank 0 sees that 588 s are long over.
    assert training.run(200)[:2] == [10, 210]
    assert training.saved[2] - training.saved[1] <= 60


def test_a_best_step_that_was_saved_counts_too(tmp_path: Path) -> None:
    assert Training(tmp_path, step_s=1, save_s=2).run(1000, best_at=300) == [10, 300, 888]


def test_a_number_of_steps_is_that_number(tmp_path: Path) -> None:
    assert Training(tmp_path, step_s=1, save_s=2, every_steps=7).run(30)[1:] == [7, 14, 21, 28]


def test_what_the_run_has_lost_already_shortens_the_interval(tmp_path: Path) -> None:
    training = Training(tmp_path, step_s=1, save_s=2)
    for attempt in range(1, 5):
        training.folder.record("began", attempt=attempt, job_id="7")
        training.folder.record("training", attempt=attempt, step=0)
        if attempt < 4:
            training.folder.record("ended", attempt=attempt, ending="rank_died")
    # Three losses, and the one that is assumed: every 6 h.
    assert training.run(400) == [10, 304]


@pytest.mark.parametrize("value", ["0", "-3", "often", "1.5", "true", "null"])
def test_what_is_neither_auto_nor_steps_is_refused_in_one_sentence(value: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_recipe("svg_captions_tiny", [f"checkpoint.every_steps={value}"])
    assert "checkpoint.every_steps: " in refusal.value.problem
    assert "is neither auto nor a number of steps" in refusal.value.problem


def test_the_profile_says_what_is_to_be_assumed() -> None:
    assert read_environment({"HPCGEMMA_INTERRUPTION_EVERY_H": "6.5"}).interruption_every_h == 6.5
    assert read_environment({"HPCGEMMA_INTERRUPTION_EVERY_H": "x"}).interruption_every_h == 24.0
    assert read_environment({}).interruption_every_h == 24.0


def test_two_ranks_agree_and_when_they_save_does_not_change_what_is_trained(tmp_path: Path) -> None:
    reference = Run(tmp_path / "reference", {"training.max_steps": 30})
    assert reference.train(2)["outcome"] == "finished"
    run = Run(tmp_path / "run", {"training.max_steps": 30, "checkpoint.every_steps": "auto"})
    run.start(2)
    run.wait_for_step(20)
    run.send(signal.SIGKILL, 0, 1)
    run.wait()
    assert run.events("saved")[0]["step"] == 10
    assert run.train(2)["outcome"] == "finished"
    assert run.events("resumed")[0]["step"] in {event["step"] for event in run.events("saved")}
    assert_same(run, reference)
