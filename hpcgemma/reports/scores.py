"""What generated answers scored, before, during and after the training, and the targets. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Scores = Mapping[str, Mapping[str, Any]]
"""Content of evaluation.json: by `untrained`, `step-N` and `trained`."""

_NO_METRICS = frozenset(("rows", "notes", "examples", "targets", "seconds", "step"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a metric reached what the recipe wants of it."""

    limits: str
    """Such as `at least 20`."""
    met: bool | None
    """None where it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """A metric, and what it came to each time."""

    metric: str
    values: tuple[float | None, ...]
    verdict: Verdict | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A prompt of the held-out rows, what was wanted, and what the model said each time."""

    prompt: str
    reference: str
    answers: tuple[str | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """All of it; nothing where nothing was generated."""

    times: tuple[str, ...]
    """When it was measured: `untrained`, steps, `trained`."""
    rows: tuple[ScoreRow, ...]
    answers: tuple[Answer, ...]
    notes: tuple[str, ...]
    """What was not measured, and why."""


def score_table(scores: Scores) -> ScoreTable:
    """Return what was measured, a row a metric, and the shown answers side by side."""
    times = tuple(sorted(scores, key=_order))
    measured = [_metrics_of(scores[when]) for when in times]
    last = scores[times[-1]] if times else {}
    verdicts = {name: _verdict(verdict) for name, verdict in (last.get("targets") or {}).items()}
    names = dict.fromkeys([*verdicts, *(name for metrics in measured for name in metrics)])
    rows = tuple(
        ScoreRow(metric=name, values=tuple(metrics.get(name) for metrics in measured), verdict=verdicts.get(name))
        for name in names
    )
    notes = dict.fromkeys(str(note) for when in times for note in scores[when].get("notes") or ())
    return ScoreTable(times=times, rows=rows, answers=_answers(scores, times), notes=tuple(notes))


def _order(when: str) -> tuple[int, int]:
    """Return the place of a time among the others."""
    step = when.removeprefix("step-")
    if step.isdigit():
        return (1, int(step))
    return (0, 0) if when == "untrained" else (2, 0)


def _metrics_of(score: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers; those of a metric's parts under `metric/part`."""
    found: dict[str, float] = {}
    for name, value in score.items():
        if name in _NO_METRICS:
            continue
        parts = {f"{name}/{part}": each for part, each in value.items()} if isinstance(value, dict) else {name: value}
        found |= {
            part: float(each)
            for part, each in parts.items()
            if isinstance(each, int | float) and not isinstance(each, bool)
        }
    return found


def _verdict(verdict: Mapping[str, Any]) -> Verdict:
    limits = " and ".join(
        f"{words} {verdict[key]:g}"
        for key, words in (("at_least", "at least"), ("at_most", "at most"))
        if verdict.get(key) is not None
    )
    return Verdict(limits=limits, met=verdict.get("met"))


def _answers(scores: Scores, times: Sequence[str]) -> tuple[Answer, ...]:
    """Return the prompts that were shown any time, with the answers of each time."""
    said: dict[tuple[str, str], dict[str, str]] = {}
    for when in times:
        for example in scores[when].get("examples") or ():
            asked = (str(example.get("prompt", "")), str(example.get("reference", "")))
            said.setdefault(asked, {})[when] = str(example.get("answer", ""))
    return tuple(
        Answer(prompt=prompt, reference=reference, answers=tuple(answers.get(when) for when in times))
        for (prompt, reference), answers in said.items()
    )
