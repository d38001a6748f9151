from __future__ import annotations

from typing import Any

import pytest

from hpcgemma.runs.state import (
    RunStatus,
    SchedulerAnswer,
    count_attempts,
    current_job_id,
    decide_state,
    is_superseded,
)
from hpcgemma.slurm.records import JobRecord

Event = dict[str, Any]
SUBMITTED: Event = {"event": "submitted", "job_id": "7", "by": "launcher"}
STARTED: Event = {"event": "started", "job_id": "7", "attempt": 1}
STOPPED: Event = {"event": "ended", "job_id": "7", "ending": "stopped", "sentence": "saved at step 8 after SIGUSR2"}
SUCCESSOR: Event = {"event": "continued", "by": "successor", "job_id": "8"}
REQUEUED: Event = {"event": "continued", "by": "requeue", "job_id": "7"}


def job(state: str, reason: str = "", job_id: str = "7") -> SchedulerAnswer:
    return SchedulerAnswer(job=JobRecord(job_id=job_id, state=state, reason=reason, source="squeue"))


def status(events: list[dict[str, Any]], answer: SchedulerAnswer) -> tuple[RunStatus, str]:
    state = decide_state("r", events, answer)
    return state.status, state.sentence


def test_a_pending_job_explains_its_reason() -> None:
    state = decide_state("r", [SUBMITTED], job("PENDING", "Priority"))
    assert state.status is RunStatus.PENDING
    assert state.sentence.startswith("Priority: ")
    assert state.hint


def test_a_running_job_says_what_it_does() -> None:
    assert status([SUBMITTED], job("RUNNING")) == (RunStatus.RUNNING, "starting")
    assert status([SUBMITTED, STARTED], job("RUNNING")) == (RunStatus.RUNNING, "training")
    warned = {"event": "warned", "job_id": "7"}
    assert status([SUBMITTED, STARTED, warned], job("RUNNING")) == (RunStatus.RUNNING, "warned; saving")
    assert status([SUBMITTED, STARTED], job("COMPLETING")) == (RunStatus.RUNNING, "its job is ending")


def test_a_last_save_that_is_tried_again_is_said_until_it_is_done() -> None:
    warned = {"event": "warned", "job_id": "7"}
    refused = {"event": "save_failed", "step": 40, "problem": "Stale file handle", "tries": 2, "again_in_s": 2.0}
    sentence = "saving; the disk refused 2 times (Stale file handle), and is tried again before the run stops"
    for events in ([STARTED, warned, refused], [STARTED, refused, warned], [STARTED, refused]):
        assert status([SUBMITTED, *events], job("RUNNING")) == (RunStatus.RUNNING, sentence)
    for event in ({"event": "saved", "step": 40}, refused | {"tries": 3, "again_in_s": None}):
        assert status([SUBMITTED, STARTED, warned, refused, event], job("RUNNING"))[1] == "warned; saving"
    passed_over = {"event": "save_failed", "step": 20, "problem": "Stale file handle"}
    assert status([SUBMITTED, STARTED, passed_over], job("RUNNING"))[1] == "training"


def test_a_finished_run_is_completed_whatever_the_job_still_does() -> None:
    events = [SUBMITTED, STARTED, {"event": "finished", "step": 40}]
    for answer in (job("RUNNING"), job("COMPLETED"), SchedulerAnswer(), SchedulerAnswer(problem="down")):
        assert status(events, answer) == (RunStatus.COMPLETED, "finished at step 40")


def test_a_completed_job_without_a_finished_run_is_no_success() -> None:
    assert status([SUBMITTED, STARTED], job("COMPLETED")) == (
        RunStatus.INTERRUPTED,
        "job 7 ended before the run was finished",
    )


def test_a_successor_is_the_runs_current_job() -> None:
    events = [SUBMITTED, STARTED, STOPPED, SUCCESSOR]
    assert current_job_id(events) == "8"
    state = decide_state("r", events, job("PENDING", "Dependency", "8"))
    assert state.status is RunStatus.PENDING
    assert state.sentence.startswith("saved and going on in job 8; Dependency: ")
    assert not state.is_requeued


def test_a_requeued_job_keeps_its_id_and_is_known_as_requeued() -> None:
    state = decide_state("r", [SUBMITTED, STARTED, STOPPED, REQUEUED], job("PENDING", "BeginTime"))
    assert state.job_id == "7"
    assert state.is_requeued
    hastened: Event = {"event": "hastened", "job_id": "7"}
    state = decide_state("r", [SUBMITTED, STARTED, STOPPED, REQUEUED, hastened], job("PENDING", "BeginTime"))
    assert not state.is_requeued, "it is asked for once"


def test_a_failure_is_told_in_the_supervisors_words() -> None:
    failed = {"event": "failed", "sentence": "the loss is not finite", "hint": "lower the learning rate"}
    state = decide_state("r", [SUBMITTED, STARTED, failed], job("FAILED"))
    assert (state.status, state.sentence, state.hint) == (
        RunStatus.FAILED,
        "the loss is not finite",
        "lower the learning rate",
    )


def test_a_resumed_run_leaves_its_failure_behind() -> None:
    failed = {"event": "failed", "sentence": "x", "hint": ""}
    assert status([SUBMITTED, STARTED, failed, SUBMITTED], job("RUNNING"))[0] is RunStatus.RUNNING


def test_cancelled_by_hpcgemma_or_by_scancel_is_cancelled() -> None:
    assert status([SUBMITTED, {"event": "cancelled"}], job("CANCELLED"))[0] is RunStatus.CANCELLED
    assert status([SUBMITTED, {"event": "cancelled"}], SchedulerAnswer())[0] is RunStatus.CANCELLED
    assert status([SUBMITTED, STARTED], job("CANCELLED"))[0] is RunStatus.CANCELLED
    assert status([SUBMITTED, {"event": "cancelled"}], job("COMPLETING"))[0] is RunStatus.RUNNING


def test_a_silent_scheduler_makes_a_run_unknown_never_failed() -> None:
    found = status([SUBMITTED, STARTED], SchedulerAnswer(problem="the controller does not answer"))
    assert found == (RunStatus.UNKNOWN, "the controller does not answer; last known: training")
    events = [SUBMITTED | {"time": 10.0}, STARTED | {"time": 20.0}, {"event": "saved", "step": 5, "time": 100.0}]
    said = decide_state("r", events, SchedulerAnswer(problem="silence"), now=340.0).sentence
    assert said == "silence; last known: training, 4 min ago"


def test_a_run_that_never_got_a_job_can_be_resumed_but_only_when_that_is_known() -> None:
    assert status([], SchedulerAnswer())[0] is RunStatus.INTERRUPTED
    assert status([], SchedulerAnswer(problem="silence"))[0] is RunStatus.UNKNOWN


def test_a_job_the_scheduler_forgot_is_interrupted() -> None:
    assert status([SUBMITTED, STARTED], SchedulerAnswer()) == (
        RunStatus.INTERRUPTED,
        "job 7 is no longer known to the scheduler and the run is not finished",
    )


@pytest.mark.parametrize("state", ["TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "FAILED", "BOOT_FAIL"])
def test_every_bad_end_of_a_job_is_explained_with_a_remedy(state: str) -> None:
    found = decide_state("r", [SUBMITTED, STARTED], job(state))
    assert found.status is RunStatus.INTERRUPTED
    assert found.sentence.startswith(f"job 7 ended as {state}: ")
    assert "hpcgemma resume r" in found.hint


def test_a_state_that_slurm_invents_tomorrow_does_not_crash() -> None:
    assert status([SUBMITTED], job("FROBNICATING"))[0] is RunStatus.RUNNING


def test_attempts_are_counted_by_their_starts() -> None:
    assert count_attempts([SUBMITTED, STARTED, STOPPED, STARTED]) == 2


def test_only_the_runs_current_job_may_touch_it() -> None:
    assert is_superseded([SUBMITTED], "7") is False
    assert is_superseded([SUBMITTED, STARTED, STOPPED, REQUEUED], "7") is False
    taken_over = [SUBMITTED, STARTED, STOPPED, SUCCESSOR]
    assert is_superseded(taken_over, "7") is True, "Slurm may requeue the old job all the same"
    assert is_superseded(taken_over, "8") is False
    for end in ("finished", "failed", "cancelled"):
        assert is_superseded([*taken_over, {"event": end}], "8") is True


def test_a_resumed_job_that_starts_before_its_submission_is_recorded_waits_for_that_line() -> None:
    over: list[Event] = [SUBMITTED, STARTED, {"event": "failed", "job_id": "7"}]
    assert is_superseded(over, "9") is None
    assert is_superseded([*over, {"event": "submitted", "job_id": "9"}], "9") is False


def test_a_job_that_was_refused_leaves_the_run_to_the_one_that_works_on_it() -> None:
    second: Event = {"event": "submitted", "job_id": "8", "by": "launcher"}
    refused: Event = {"event": "refused", "job_id": "8", "sentence": "another job works on this run"}
    events = [SUBMITTED, STARTED, second, refused]
    assert current_job_id(events) == "7"
    assert status(events, job("RUNNING")) == (RunStatus.RUNNING, "training")
    assert is_superseded(events, "7") is False
    assert is_superseded(events, "8") is True
    assert current_job_id([*events, second]) == "8"  # submitted again, under the number of an earlier process
