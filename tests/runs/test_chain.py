"""Jobs that were queued ahead are the run's own: each has its turn, and none disturbs."""

from __future__ import annotations

from typing import Any

from hpcgemma.runs.state import (
    RunStatus,
    SchedulerAnswer,
    chain_position,
    current_job_id,
    decide_state,
    is_superseded,
    waiting_links,
    wanted_links,
)
from hpcgemma.slurm.records import JobRecord

Event = dict[str, Any]

SUBMITTED: Event = {"event": "submitted", "by": "launcher", "job_id": "1", "links": 3}
LINKS: list[Event] = [{"event": "linked", "job_id": "2"}, {"event": "linked", "job_id": "3"}]
STARTED: Event = {"event": "started", "job_id": "1"}
CHAIN = [SUBMITTED, *LINKS, STARTED]
CONTINUED: Event = {"event": "continued", "by": "link", "job_id": "2"}


def test_links_that_wait_do_not_take_the_run_from_its_job() -> None:
    assert current_job_id(CHAIN) == "1"
    assert waiting_links(CHAIN) == ["2", "3"]
    assert wanted_links(CHAIN) == 3


def test_a_link_that_starts_is_no_stranger() -> None:
    assert [is_superseded(CHAIN, job_id) for job_id in ("1", "2", "3")] == [False, False, False]


def test_a_job_whose_link_has_taken_over_is_superseded() -> None:
    events = [*CHAIN, CONTINUED]
    assert [is_superseded(events, job_id) for job_id in ("1", "2", "3")] == [True, False, False]
    assert waiting_links(events) == ["3"]


def test_a_link_that_was_passed_over_is_superseded() -> None:
    events = [*CHAIN, {"event": "continued", "by": "link", "job_id": "3"}]
    assert is_superseded(events, "2")
    assert waiting_links(events) == []


def test_links_of_a_run_that_is_over_are_superseded() -> None:
    for word in ("finished", "failed", "cancelled"):
        assert is_superseded([*CHAIN, {"event": word, "job_id": "1"}], "2"), word


def test_a_resume_ends_the_chain_before_it() -> None:
    events = [*CHAIN, {"event": "submitted", "by": "launcher", "job_id": "9"}]
    assert is_superseded(events, "2")
    assert waiting_links(events) == []
    assert wanted_links(events) == 0


def test_a_refused_link_is_no_link() -> None:
    events = [*CHAIN, {"event": "refused", "job_id": "2"}]
    assert waiting_links(events) == ["3"]
    assert current_job_id(events) == "1"


def test_where_a_run_is_in_its_chain_is_told() -> None:
    assert chain_position(CHAIN, "1") == (1, 3)
    assert chain_position([*CHAIN, CONTINUED], "2") == (2, 3)
    assert chain_position([*CHAIN, CONTINUED], "7") is None
    assert chain_position([SUBMITTED], "1") is None


def test_a_run_whose_job_was_lost_waits_in_its_next_link() -> None:
    link = JobRecord(job_id="2", state="PENDING", reason="Priority", source="squeue")
    state = decide_state("x", CHAIN, SchedulerAnswer(job=link))
    assert (state.status, state.job_id) == (RunStatus.PENDING, "2")


def test_a_chain_that_is_used_up_says_so() -> None:
    events = [*CHAIN, {"event": "chain_ended", "links": 3, "job_id": "1"}]
    ended = JobRecord(job_id="1", state="COMPLETED", source="squeue")
    state = decide_state("x", events, SchedulerAnswer(job=ended))
    assert state.status is RunStatus.INTERRUPTED
    assert state.sentence == "the last of its 3 links ended before it was finished"
    assert state.hint == "hpcgemma resume x, with --links N for a chain again"
