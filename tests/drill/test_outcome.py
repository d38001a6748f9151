"""What became of a run after an act is read from its events and metrics."""

from __future__ import annotations

from typing import Any

import pytest

from hpcgemma.drill.acts import Act, Deed
from hpcgemma.drill.outcome import Outcome, outcome_of

INTERVAL = 100
Line = dict[str, Any]


def event(time: float, kind: str, **facts: Any) -> Line:
    return {"time": time, "event": kind, **facts}


def attempt(time: float, number: int, job_id: str, step: int, node: str = "node1") -> list[Line]:
    """Return the events of a start that has its nodes at a time, loads a checkpoint, and steps ten seconds later."""
    resumed = [event(time + 9, "resumed", attempt=number, step=step, samples=step * 16)] if step else []
    return [
        event(time, "began", attempt=number, job_id=job_id),
        event(time + 1, "started", attempt=number, job_id=job_id, nodes=1, node_list=node, ranks=2),
        *resumed,
        event(time + 10, "training", attempt=number, step=step),
    ]


def saved(time: float, step: int) -> Line:
    return event(time, "saved", step=step, samples=step * 16, seconds=0.2)


def ended(time: float, number: int, job_id: str, ending: str, step: int | None, sentence: str = "it ended") -> Line:
    return event(time, "ended", attempt=number, job_id=job_id, ending=ending, step=step, sentence=sentence)


def steps(number: int, first: int, last: int, loss: float = 1.0) -> list[Line]:
    """Return the metrics of steps, whose losses are of the step alone."""
    return [
        {"attempt": number, "step": step, "loss": loss / step, "grad_norm": 2.0 / step}
        for step in range(first, last + 1)
    ]


BEFORE = [event(0, "submitted", job_id="7", by="launcher"), *attempt(5, 1, "7", 0), saved(20, 100)]


def deed(act: Act, **facts: Any) -> Deed:
    return Deed(act=act, at=30.0, attempt=1, job_id="7", **facts)


def outcome(of: Deed, after: list[Line], metrics: list[Line]) -> Outcome:
    return outcome_of(of, [*BEFORE, *after], metrics, interval=INTERVAL)


def test_a_warned_run_saves_and_loses_nothing_in_the_same_allocation() -> None:
    seen = outcome(
        deed(Act.WARNED),
        [
            event(30.5, "warned", signal="SIGUSR2", cause="a signal by hand"),
            saved(31.25, 126),
            ended(32, 1, "7", "stopped", 126),
            event(32, "relaunched", attempt=2, job_id="7"),
            *attempt(32, 2, "7", 126),
        ],
        [*steps(1, 1, 126), *steps(2, 127, 200)],
    )
    assert (seen.noticed_after_s, seen.saved_in_s, seen.back_after_s) == (0.5, 0.75, 12.0)
    assert (seen.way, seen.queued_s, seen.restart_s) == ("in place", 0.0, 10.0)
    assert (seen.resumed_step, seen.lost_steps, seen.allowed_loss, seen.repeated_steps) == (126, 0, 0, 0)
    assert (seen.problem, seen.hint) == ("", "")


def test_killed_ranks_lose_what_came_after_the_checkpoint_and_make_it_again_in_the_same_bits() -> None:
    after = [
        ended(30.3, 1, "7", "rank_died", None, "rank 0 was killed by SIGKILL"),
        event(30.3, "relaunched", attempt=2, job_id="7"),
        *attempt(30.3, 2, "7", 100),
    ]
    seen = outcome(deed(Act.RANKS_KILLED), after, [*steps(1, 1, 130), *steps(2, 101, 200)])
    assert seen.noticed_after_s == pytest.approx(0.3)
    assert (seen.saved_in_s, seen.way, seen.ending) == (None, "in place", "rank 0 was killed by SIGKILL")
    assert (seen.reached_step, seen.resumed_step, seen.lost_steps, seen.allowed_loss) == (130, 100, 30, 100)
    assert (seen.repeated_steps, seen.differing_steps, seen.problem) == (30, 0, "")

    other = outcome(deed(Act.RANKS_KILLED), after, [*steps(1, 1, 130), *steps(2, 101, 110), *steps(2, 111, 200, 1.5)])
    assert other.problem == "20 of 30 steps that were made twice have another loss"
    assert "libraries that differ between nodes" in other.hint


@pytest.mark.parametrize(
    ("act", "saved_steps", "shows_nothing"),
    [
        pytest.param(Act.RANKS_KILLED, 100, False, id="thirty steps are made again"),
        pytest.param(Act.RANKS_KILLED, 130, True, id="it had just saved"),
        pytest.param(Act.WARNED, 130, False, id="it was to save"),
    ],
)
def test_a_kill_that_took_no_step_away_shows_nothing(act: Act, saved_steps: int, shows_nothing: bool) -> None:
    after = [event(30.3, "relaunched", attempt=2, job_id="7"), *attempt(30.3, 2, "7", saved_steps)]
    assert outcome(deed(act), after, steps(1, 1, 130)).shows_nothing is shows_nothing
    assert outcome(deed(act), [], steps(1, 1, 130)).shows_nothing is False


def test_a_requeued_run_is_back_on_another_node_and_its_wait_is_told_from_its_restart() -> None:
    seen = outcome(
        deed(Act.REQUEUED),
        [
            event(30.4, "warned", signal="SIGTERM", cause="requeued"),
            event(30.5, "continued", by="requeue", job_id="7"),
            saved(30.6, 126),
            ended(31, 1, "7", "stopped", 126),
            event(33, "hastened", job_id="7"),
            *attempt(40, 2, "7", 126, node="node3"),
        ],
        [*steps(1, 1, 126), *steps(2, 127, 200)],
    )
    assert (seen.way, seen.queued_s, seen.restart_s, seen.back_after_s) == ("requeue", 9.0, 10.0, 20.0)
    assert (seen.node_before, seen.node_after, seen.hastened, seen.job_after) == ("node1", "node3", True, "7")
    assert (seen.lost_steps, seen.problem) == (0, "")


def test_ranks_that_had_saved_before_the_supervisor_knew_say_which_signal_came() -> None:
    stopped = ended(30.5, 1, "7", "stopped", 126, "saved at step 126 after SIGTERM")
    after = [saved(30.25, 126), stopped, event(30.6, "continued", by="requeue", job_id="7"), *attempt(40, 2, "7", 126)]
    seen = outcome(deed(Act.REQUEUED), after, [*steps(1, 1, 126), *steps(2, 127, 130)])
    assert (seen.signal, seen.way, seen.lost_steps, seen.problem) == ("SIGTERM", "requeue", 0, "")
    assert seen.saved_in_s == pytest.approx(0.2)


def test_a_job_that_was_killed_before_it_could_save_has_failed_the_requeue() -> None:
    seen = outcome(deed(Act.REQUEUED), attempt(40, 2, "7", 100), [*steps(1, 1, 130), *steps(2, 101, 130)])
    assert (seen.noticed_after_s, seen.way) == (None, "requeue")
    assert seen.problem == "30 steps were lost, where none should be"


def test_the_warning_before_a_time_limit_is_measured_against_it() -> None:
    seen = outcome(
        deed(Act.TIME_LIMIT, limit_at=120.0),
        [
            event(80, "warned", signal="SIGUSR2", cause="time limit"),
            saved(80.5, 900),
            ended(81, 1, "7", "stopped", 900),
            event(82, "continued", by="successor", job_id="8", lead_s=30),
            *attempt(85, 2, "8", 900),
        ],
        [*steps(1, 1, 900), *steps(2, 901, 950)],
    )
    assert (seen.noticed_after_s, seen.before_limit_s, seen.saved_in_s) == (50.0, 40.0, 0.5)
    assert (seen.way, seen.job_after, seen.queued_s, seen.problem) == ("successor", "8", 4.0, "")


def test_a_job_that_was_killed_whole_is_resumed_by_hand() -> None:
    seen = outcome(
        deed(Act.JOB_KILLED, stood_still="job 7 ended as FAILED: it failed"),
        [event(40, "submitted", job_id="9", by="launcher"), *attempt(43, 2, "9", 100)],
        [*steps(1, 1, 130), *steps(2, 101, 140)],
    )
    assert (seen.noticed_after_s, seen.way, seen.queued_s, seen.restart_s) == (None, "resume", 3.0, 10.0)
    assert (seen.lost_steps, seen.repeated_steps, seen.problem) == (30, 30, "")


def test_where_a_job_waits_ahead_it_goes_on_with_a_killed_one() -> None:
    seen = outcome(
        deed(Act.JOB_KILLED),
        [event(33, "continued", by="link", job_id="8"), *attempt(33, 2, "8", 100)],
        [*steps(1, 1, 130), *steps(2, 101, 140)],
    )
    assert (seen.way, seen.job_after, seen.problem) == ("link", "8", "")


def test_a_run_that_needs_a_person_where_it_should_not_is_a_failure() -> None:
    still = "job 7 ended as FAILED: it failed"
    seen = outcome(
        deed(Act.TIME_LIMIT, limit_at=120.0, stood_still=still),
        [event(40, "submitted", job_id="9", by="launcher"), *attempt(43, 2, "9", 100)],
        [*steps(1, 1, 130), *steps(2, 101, 140)],
    )
    assert seen.problem == f"the run stood still until it was resumed by hand: {still}"
    gone = outcome(deed(Act.TIME_LIMIT, limit_at=120.0), [ended(33, 1, "7", "error", 130)], steps(1, 1, 130))
    assert (gone.is_back, gone.problem) == (False, "the run did not come back")


def test_what_was_refused_is_no_failure() -> None:
    seen = outcome(deed(Act.REQUEUED, refused="Slurm's command 'scontrol requeue 7' failed: disabled"), [], [])
    assert (seen.is_back, seen.problem) == (False, "")


def test_what_came_of_the_next_act_is_not_taken_for_it() -> None:
    still = "nothing came of it: the run trained on"
    later = [event(400, "warned", signal="SIGUSR2"), ended(401, 1, "7", "stopped", 400), *attempt(402, 2, "7", 400)]
    seen = outcome_of(
        deed(Act.WARNED, stood_still=still), [*BEFORE, *later], steps(1, 1, 400), interval=INTERVAL, until=390.0
    )
    assert (seen.is_back, seen.noticed_after_s, seen.problem) == (False, None, still)
