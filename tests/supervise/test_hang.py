from __future__ import annotations

import pytest

from hpcgemma.supervise.endings import EndingKind, NextMove, hang_ending, next_move
from hpcgemma.supervise.hang import Beat, Hang, HangWatch

TRAINING_S, ELSEWHERE_S = 60.0, 1800.0


def beat(step: int, phase: str = "training", sign: int = 0) -> Beat:
    """Return a heartbeat; another sign is another sign of life in the same step."""
    return Beat(f"{phase} {step} {sign}", phase, step)


class Ranks:
    """A watched attempt of two ranks, and its clock."""

    def __init__(self, training_s: float | None = TRAINING_S, elsewhere_s: float | None = ELSEWHERE_S) -> None:
        self.now = 1e6  # a monotonic clock begins anywhere
        self.watch = HangWatch({}, training_s=training_s, elsewhere_s=elsewhere_s)

    def pass_time(self, seconds: float, *beats: Beat) -> Hang | None:
        """Look each second at heartbeats that do not change, and return the last look's word."""
        said = None
        for _ in range(int(seconds)):
            said = self.watch.look(dict(enumerate(beats)), self.now)
            self.now += 1
        return said

    def train(self, step_s: int, steps: int = 20) -> None:
        """Take steps, each seen as it begins."""
        for step in range(steps):
            assert self.pass_time(step_s, beat(step), beat(step)) is None


def test_ranks_that_are_silent_for_a_minute_of_quick_steps_hang() -> None:
    ranks = Ranks()
    ranks.train(step_s=2)
    still = (beat(20), beat(20))
    assert ranks.pass_time(61, *still) is None
    assert ranks.pass_time(1, *still) == Hang(phase="training", step=20, silent_s=61.0, behind=None)


def test_slow_steps_are_given_five_times_the_99th_percentile() -> None:
    ranks = Ranks()
    ranks.train(step_s=40)
    assert ranks.watch.limit_s() == 200.0
    assert ranks.pass_time(201, beat(20), beat(20)) is None
    assert ranks.pass_time(2, beat(20), beat(20)) is not None


def test_first_steps_may_take_as_long_as_any_other_phase() -> None:
    ranks = Ranks()
    ranks.train(step_s=2, steps=5)
    assert ranks.pass_time(1801, beat(5), beat(5)) is None
    assert ranks.pass_time(2, beat(5), beat(5)) is not None


def test_of_quick_steps_a_few_heartbeats_are_enough_to_know() -> None:
    ranks = Ranks()
    for step in (0, 8, 16):
        assert ranks.pass_time(1, beat(step), beat(step)) is None
    assert ranks.watch.limit_s() == TRAINING_S


def test_steps_that_are_over_between_two_saves_are_known_by_their_numbers() -> None:
    ranks = Ranks()
    for step in (3, 20, 40):
        for phase in ("training", "saving"):
            assert ranks.pass_time(1, beat(step, phase), beat(step, phase)) is None
    assert ranks.pass_time(1, beat(41), beat(41)) is None
    assert ranks.watch.limit_s() == TRAINING_S


@pytest.mark.parametrize("phase", ["starting", "loading", "rehearsing", "evaluating", "answering", "saving"])
def test_other_phases_have_a_limit_of_their_own(phase: str) -> None:
    ranks = Ranks()
    ranks.train(step_s=2)
    still = (beat(20), beat(20, phase))
    assert ranks.pass_time(1801, *still) is None
    hang = ranks.pass_time(2, *still)
    assert hang is not None


def test_a_save_between_two_steps_makes_no_step_longer() -> None:
    ranks = Ranks()
    ranks.train(step_s=2)
    ranks.pass_time(500, beat(20, "saving"), beat(20, "saving"))
    ranks.pass_time(2, beat(21), beat(21))
    assert ranks.watch.limit_s() == TRAINING_S


def test_while_one_rank_gives_signs_of_life_none_hangs() -> None:
    ranks = Ranks()
    ranks.train(step_s=2)
    for sign in range(300):
        assert ranks.pass_time(1, beat(20, sign=sign), beat(20)) is None


def test_the_rank_of_an_earlier_step_is_the_one_behind() -> None:
    ranks = Ranks()
    ranks.train(step_s=2)
    ranks.pass_time(1, beat(20), beat(19))
    hang = ranks.pass_time(62, beat(20), beat(19))
    assert hang is not None
    assert (hang.behind, hang.step) == (1, 19)


def test_heartbeats_of_the_attempt_before_are_no_sign_of_this_one() -> None:
    left = {0: beat(50), 1: beat(50)}
    watch = HangWatch(left, training_s=TRAINING_S, elsewhere_s=ELSEWHERE_S)
    assert watch.look(left, 0.0) is None
    assert watch.limit_s() == ELSEWHERE_S


def test_time_in_which_the_watcher_itself_stood_still_does_not_count() -> None:
    ranks = Ranks()
    ranks.train(step_s=2)
    ranks.pass_time(1, beat(20), beat(20))
    ranks.now += 5000
    assert ranks.pass_time(45, beat(20), beat(20)) is None


def test_an_excuse_begins_the_silence_anew() -> None:
    ranks = Ranks()
    ranks.train(step_s=2)
    assert ranks.pass_time(62, beat(20), beat(20)) is not None
    ranks.watch.forgive()
    assert ranks.pass_time(60, beat(20), beat(20)) is None


def test_each_limit_can_be_turned_off() -> None:
    never = Ranks(training_s=None)
    never.train(step_s=2)
    assert never.pass_time(5000, beat(20), beat(20)) is None
    never = Ranks(elsewhere_s=None)
    assert never.pass_time(5000, beat(0, "loading"), beat(0, "loading")) is None


def test_a_hang_is_said_in_a_sentence_and_relaunched() -> None:
    one = hang_ending(Hang(phase="training", step=34, silent_s=61.7, behind=1))
    assert (one.kind, one.rank, one.step) == (EndingKind.HUNG, 1, 34)
    assert one.sentence == "rank 1 hangs (training, after step 34): no sign of life for 62 s"
    assert "--set watch.training_s=600" in one.hint
    all_of_them = hang_ending(Hang(phase="saving", step=34, silent_s=1801.0, behind=None))
    assert all_of_them.sentence == "the ranks hang (saving, after step 34): no sign of life for 1801 s"
    moves = [next_move(one, without_progress=count, max_relaunches=2, cancelled=False) for count in (1, 2, 3)]
    assert moves == [NextMove.RELAUNCH, NextMove.RELAUNCH, NextMove.GIVE_UP]
