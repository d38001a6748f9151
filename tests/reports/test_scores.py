from __future__ import annotations

from hpcgemma.reports.scores import ScoreRow, Verdict, score_table
from tests.reports.eventful import EVALUATION, HOSTILE


def test_each_metric_stands_beside_its_target() -> None:
    table = score_table(EVALUATION)
    assert table.times == ("untrained", "trained")
    assert table.rows == (
        ScoreRow(metric="bleu4", values=(0.0, 31.5), verdict=Verdict(limits="at least 30", met=True)),
        ScoreRow(metric="eval_loss", values=(None, 0.0612), verdict=Verdict(limits="at most 0.05", met=False)),
        ScoreRow(metric="clip_score", values=(None, None), verdict=Verdict(limits="at least 25", met=None)),
        ScoreRow(metric="instruction_checks/format", values=(None, 90.0), verdict=None),
    )
    assert table.notes == (HOSTILE,)


def test_times_are_in_the_order_of_the_training_and_answers_stand_side_by_side() -> None:
    def score(answer: str) -> dict[str, object]:
        return {"bleu4": 1.0, "examples": [{"prompt": "p", "reference": "r", "answer": answer}]}

    table = score_table({"trained": score("d"), "step-1000": score("c"), "step-200": score("b"), "untrained": {}})
    assert table.times == ("untrained", "step-200", "step-1000", "trained")
    [answer] = table.answers
    assert (answer.prompt, answer.reference, answer.answers) == ("p", "r", (None, "b", "c", "d"))


def test_nothing_generated_is_an_empty_table() -> None:
    table = score_table({})
    assert (table.times, table.rows, table.answers, table.notes) == ((), (), (), ())
