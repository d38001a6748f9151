from __future__ import annotations

from hpcgemma.reports.attempts import attempt_rows
from hpcgemma.runs.spans import spans
from tests.reports.eventful import EVENTS, METRICS, START


def test_each_attempt_says_how_it_ended_what_was_lost_and_how_the_run_went_on() -> None:
    first, second, third = attempt_rows(EVENTS, METRICS, spans(EVENTS, METRICS))
    assert (first.job_id, first.nodes, first.ranks, first.signal) == ("7", "node[1-2]", 8, "SIGTERM")
    assert (first.first_step, first.last_step, first.lost_steps) == (0, 138, 0)
    assert (first.way, first.back_after_s) == ("successor", 920 - 764)
    assert (second.job_id, second.ending, second.signal) == ("8", "signal", "")
    assert (second.first_step, second.last_step, second.lost_steps) == (138, 237, 37)
    assert (second.way, second.back_after_s) == ("in place", 1082 - 1060)
    assert (third.ended, third.sentence) == (START + 1184, "finished at step 300")
    assert (third.way, third.back_after_s, third.lost_steps) == (None, None, 0)


def test_an_attempt_that_was_killed_with_its_supervisor_ends_without_a_word() -> None:
    events = [event for event in EVENTS if not (event["event"] == "ended" and event.get("attempt") == 2)]
    second = attempt_rows(events, METRICS, spans(events, METRICS))[1]
    assert (second.ended, second.ending, second.sentence) == (None, "", "")
    assert second.back_after_s == 1082 - 1030  # since its last sign of life


def test_a_run_that_has_only_begun_has_an_attempt_without_steps() -> None:
    [only] = attempt_rows(EVENTS[:2], [], spans(EVENTS[:2], []))
    assert (only.number, only.nodes, only.first_step, only.last_step, only.way) == (1, "", None, None, None)
