from __future__ import annotations

import math

from hpcgemma.reports.charts import charts_of, thinned
from tests.reports.eventful import METRICS


def test_each_metric_has_its_chart_and_losses_share_one() -> None:
    charts = {chart.title: chart for chart in charts_of(METRICS)}
    assert list(charts) == [
        "Loss per learned token",
        "Learning rate",
        "Gradient norm before clipping",
        "Tokens per second, over all ranks",
        "Attention entropy",
    ]
    losses = charts["Loss per learned token"]
    assert losses.names == ("training", "held out")
    assert losses.steps == tuple(range(1, 301))
    training, held_out = losses.values
    assert training[0] == 6
    assert [(step, value) for step, value in zip(losses.steps, held_out, strict=True) if value] == [
        (100, 0.8),
        (200, 0.6),
    ]


def test_of_a_step_that_was_made_again_the_later_line_counts() -> None:
    lines = [{"step": step, "loss": loss} for step, loss in ((1, 3.0), (2, 2.5), (2, 2.0))]
    [chart] = charts_of(lines)
    assert (chart.steps, chart.values) == ((1, 2), ((3.0, 2.0),))


def test_a_loss_that_is_no_number_is_a_gap() -> None:
    [chart] = charts_of([{"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}])
    assert chart.values == ((3.0, None, None),)


def test_answers_are_drawn_once_there_are_more_than_before_and_after() -> None:
    def titles(*steps: int) -> list[str]:
        return [chart.title for chart in charts_of([{"step": step, "bleu4": 10.0 + step} for step in steps])]

    assert titles(0, 300) == []
    assert titles(0, 100, 300) == ["Scores of generated answers"]


def test_a_thinned_curve_keeps_its_ends_and_every_spike() -> None:
    curve = dict.fromkeys(range(10001), 1.0) | {3_333: 9.0, 7_777: -9.0}
    kept = thinned(curve, 100)
    assert len(kept) <= 100
    assert (min(kept), max(kept)) == (0, 10_000)
    assert (kept[3_333], kept[7_777]) == (9.0, -9.0)
    assert list(kept) == sorted(kept)
    assert thinned({1: 2.0, 0: 1.0}, 100) == {0: 1.0, 1: 2.0}


def test_lines_without_a_step_or_with_words_are_passed_over() -> None:
    assert charts_of([{"loss": 1.0}, {"step": 1, "loss": "much"}, {"step": "2", "loss": 1.0}]) == ()
