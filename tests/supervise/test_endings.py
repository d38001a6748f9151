from __future__ import annotations

import signal
from typing import Any

import pytest

from hpcgemma.supervise.endings import (
    Ending,
    EndingKind,
    NextMove,
    attempts_without_progress,
    classify,
    next_move,
    save_problem,
)
from hpcgemma.supervise.launchers import RankExit

CLEAN = [RankExit(0, 0, None), RankExit(1, 0, None)]
KILLED = [RankExit(1, None, signal.SIGKILL)]


def failed(kind: str, sentence: str = "why", **more: Any) -> dict[str, Any]:
    return {"outcome": "failed", "kind": kind, "sentence": sentence, "hint": "do", "rank": 0, "step": 3, **more}


def test_ranks_that_finished_are_finished() -> None:
    ending = classify(CLEAN, {"outcome": "finished", "step": 9}, warned=False)
    assert ending == Ending(kind=EndingKind.FINISHED, sentence="finished at step 9", step=9)


def test_a_graceful_save_names_its_signal() -> None:
    ending = classify(CLEAN, {"outcome": "stopped", "step": 9, "signal": "SIGTERM"}, warned=False)
    assert ending == Ending(kind=EndingKind.STOPPED, sentence="saved at step 9 after SIGTERM", step=9)


def test_a_killed_rank_is_named_with_its_signal() -> None:
    ending = classify(KILLED, None, warned=False)
    assert (ending.kind, ending.sentence) == (EndingKind.RANK_DIED, "rank 1 was killed by SIGKILL")


def test_a_shells_code_for_a_signal_counts_as_the_signal() -> None:
    ending = classify([RankExit(None, 137, None)], None, warned=False)
    assert ending.sentence == "a rank was killed by SIGKILL"


def test_a_survivors_complaint_about_a_lost_peer_is_not_the_cause() -> None:
    said = failed("peer_lost", "another rank is gone")
    assert classify(KILLED, said, warned=False).sentence == "rank 1 was killed by SIGKILL"
    alone = classify([RankExit(0, 1, None)], said, warned=False)
    assert alone.kind is EndingKind.RANK_DIED
    assert alone.sentence.startswith("a rank lost its peers: ")


@pytest.mark.parametrize("kind", ["data", "input", "cuda_oom", "non_finite_loss", "disk", "error"])
def test_what_the_trainer_says_of_its_failure_is_passed_on(kind: str) -> None:
    ending = classify([RankExit(0, 1, None)], failed(kind), warned=False)
    assert ending == Ending(kind=EndingKind(kind), sentence="why", hint="do", step=3, rank=0)
    move = next_move(ending, without_progress=1, max_relaunches=3, cancelled=False)
    assert move is NextMove.GIVE_UP


def test_a_kind_of_tomorrow_is_an_error() -> None:
    assert classify([RankExit(0, 1, None)], failed("quantum"), warned=False).kind is EndingKind.ERROR


def test_ranks_ended_after_a_warning_before_they_saved_go_on_all_the_same() -> None:
    for exits in (KILLED, [RankExit(0, None, signal.SIGTERM)], CLEAN):
        ending = classify(exits, None, warned=True)
        assert ending.kind is EndingKind.LOST_WARNED
        assert next_move(ending, without_progress=0, max_relaunches=3, cancelled=False) is NextMove.CONTINUE


def test_after_a_signal_by_hand_the_same_allocation_is_used_further() -> None:
    ending = classify(CLEAN, {"outcome": "stopped", "step": 9, "signal": "SIGUSR2"}, warned=True)
    move = next_move(ending, without_progress=0, max_relaunches=3, cancelled=False, keeps_allocation=True)
    assert move is NextMove.RELAUNCH


def test_a_warning_that_killed_a_rank_before_it_listened_is_no_crash() -> None:
    ending = classify([RankExit(0, None, signal.SIGTERM)], None, warned=False)
    assert ending.kind is EndingKind.LOST_WARNED


def test_an_end_without_a_word_is_an_error_with_its_code() -> None:
    ending = classify([RankExit(0, 0, None), RankExit(1, 3, None)], None, warned=False)
    assert ending.sentence == "rank 1 ended with exit code 3 and no word of why"


def test_a_dead_rank_is_relaunched_until_the_bound_without_progress() -> None:
    ending = classify(KILLED, None, warned=False)
    moves = [next_move(ending, without_progress=count, max_relaunches=2, cancelled=False) for count in (1, 2, 3)]
    assert moves == [NextMove.RELAUNCH, NextMove.RELAUNCH, NextMove.GIVE_UP]


def test_a_cancelled_run_is_never_revived() -> None:
    for outcome in ({"outcome": "stopped", "step": 1}, None):
        ending = classify(CLEAN, outcome, warned=True)
        move = next_move(ending, without_progress=0, max_relaunches=3, cancelled=True)
        assert move is NextMove.STAY_CANCELLED


def test_a_run_that_finished_while_it_was_cancelled_is_finished() -> None:
    ending = classify(CLEAN, {"outcome": "finished", "step": 1}, warned=True)
    assert next_move(ending, without_progress=0, max_relaunches=3, cancelled=True) is NextMove.FINISH


def test_only_failures_since_the_last_new_checkpoint_count() -> None:
    died = {"event": "ended", "ending": "rank_died"}

    def saved(step: int) -> dict[str, Any]:
        return {"event": "saved", "step": step}

    assert attempts_without_progress([died, died]) == 2
    assert attempts_without_progress([died, saved(4), died]) == 1
    assert attempts_without_progress([saved(4), died, saved(4), died]) == 2
    assert attempts_without_progress([died, died, {"event": "submitted"}]) == 0
    back = {"event": "resumed", "step": 2}
    assert attempts_without_progress([saved(8), died, back, saved(6), died]) == 1, "a broken checkpoint took it back"


def test_jobs_too_short_for_a_single_step_are_given_up_but_preemption_never_counts() -> None:
    limited = {"event": "ended", "ending": "stopped", "cause": "time limit"}
    preempted = {"event": "ended", "ending": "stopped", "cause": "preempted"}
    assert attempts_without_progress([limited, limited, preempted]) == 2
    stopped = classify(CLEAN, {"outcome": "stopped", "step": 0}, warned=True)
    moves = [next_move(stopped, without_progress=count, max_relaunches=1, cancelled=False) for count in (0, 1, 2)]
    assert moves == [NextMove.CONTINUE, NextMove.CONTINUE, NextMove.GIVE_UP]


def test_a_disk_so_full_that_the_last_word_was_lost_is_known_from_the_saves() -> None:
    events: list[dict[str, Any]] = [
        {"event": "started"},
        {"event": "saved", "step": 4},
        {"event": "save_failed", "problem": "No space"},
    ]
    assert save_problem(events) == "No space"
    assert save_problem([*events, {"event": "saved", "step": 8}]) == ""
    assert save_problem([*events, {"event": "started"}]) == ""
    ending = classify([RankExit(0, 1, None)], None, warned=False, save_problem="No space")
    assert (ending.kind, ending.sentence) == (EndingKind.DISK, "nothing more could be written: No space")
