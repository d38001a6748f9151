from __future__ import annotations

import pytest

from hpcgemma.reports.bars import WIDTH, share_bar, shares_of, ticks, timeline
from hpcgemma.runs.spans import spans
from hpcgemma.runs.time_use import TimeUse, time_use_of
from tests.reports.eventful import EVENTS, METRICS


def test_shares_are_those_of_the_time_with_nodes() -> None:
    use = TimeUse(productive_s=80, saving_s=5, restarting_s=10, lost_s=5, queued_s=1000)
    shares = shares_of(use)
    assert [(share.kind, share.part) for share in shares] == [
        ("productive", 0.8),
        ("saving", 0.05),
        ("restarting", 0.1),
        ("lost", 0.05),
    ]
    assert [(piece.start, piece.width) for piece in share_bar(shares)] == [(0, 800), (800, 50), (850, 100), (950, 50)]
    assert share_bar(shares)[0].words == "productive: 80 s, 80.0%"
    assert shares_of(TimeUse(queued_s=10)) == ()


def test_the_timeline_has_every_second_once() -> None:
    pieces = spans(EVENTS, METRICS)
    drawn = timeline(pieces)
    assert sum(piece.width for piece in drawn) == pytest.approx(WIDTH, abs=0.1)
    assert drawn[0].kind == "queued"
    assert [piece.words for piece in drawn if piece.kind == "lost"] == [
        "attempt 2: lost: made again later for 50 s, 37 steps"
    ]
    assert sum(span.seconds for span in pieces) == pytest.approx(1184)
    assert time_use_of(pieces).queued_s == pytest.approx(600 + 136)


def test_the_axis_runs_from_the_submission_to_the_end() -> None:
    marks = ticks(spans(EVENTS, METRICS))
    assert [mark.place for mark in marks] == [0, 250, 500, 750, 1000]
    assert ticks([]) == ()
    assert timeline([]) == ()
