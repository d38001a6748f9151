"""A run in words and figures."""

from __future__ import annotations

from typing import Any

from hpcgemma.cli import console
from hpcgemma.runs.facts import as_mapping
from hpcgemma.runs.progress import Progress
from hpcgemma.runs.state import RunState, RunStatus
from hpcgemma.runs.store import RunEntry
from hpcgemma.walltime import duration

_TIMES = ("productive", "saving", "restarting", "lost")


def figures(progress: Progress) -> str:
    """Return loss, speed and time left in a few words."""
    parts = []
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.tokens_per_s is not None:
        parts.append(f"{progress.tokens_per_s:,.0f} tokens/s")
    if progress.seconds_left:
        parts.append(f"{duration(progress.seconds_left)} left")
    return "  ".join(parts)


def show_one(entry: RunEntry, state: RunState) -> None:
    """Print one run, a fact a line."""
    facts = as_mapping(entry, state)
    running = state.status is RunStatus.RUNNING
    step = f"{facts['step']} of {facts['total_steps']}" if facts["total_steps"] else ""
    ending = facts["last_ending"] if state.status.is_active else None
    start = state.job.start_time if state.job and state.status is RunStatus.PENDING else None
    console.facts(
        [
            ("run", f"{entry.name}  ({entry.recipe} on {entry.profile})"),
            ("state", f"{state.status.value}: {state.sentence}"),
            ("try", state.hint),
            ("job", _jobs(state.job_id, facts["job_ids"], facts["waiting_links"], facts["link"])),
            ("nodes", facts["nodes"] or ""),
            ("starts", f"about {start:%Y-%m-%d %H:%M} by Slurm's estimate" if start else ""),
            ("attempts", str(facts["attempts"] or "")),
            ("before", f"attempt {ending['attempt']}: {ending['sentence']}" if ending else ""),
            ("advice", ending["hint"] or "" if ending else ""),
            *(("slow", sentence) for sentence in facts["stragglers"]),
            ("step", step),
            ("loss", _number(facts["loss"], ".4f")),
            ("eval loss", _number(facts["eval_loss"], ".4f")),
            ("tokens/s", _number(facts["tokens_per_s"], ",.0f")),
            ("time left", duration(facts["seconds_left"]) if running else ""),
            ("ETTR", _time_words(facts["time"])),
            ("predicted", _predicted_words(facts["time"])),
            ("restart", _restart_words(facts["time"])),
            *(("answers", line) for line in _answers(facts["answers"])),
            ("folder", entry.path),
            ("result", facts["final"] or ""),
        ]
    )


def table_row(entry: RunEntry, state: RunState) -> list[str]:
    """Return one line of the table of runs."""
    facts = as_mapping(entry, state, with_time=False)
    return [
        entry.name,
        str(state.job_id or ""),
        state.status.value,
        f"{facts['step']}/{facts['total_steps']}" if facts["total_steps"] else "",
        _number(facts["loss"], ".4f"),
        duration(facts["seconds_left"]) if state.status is RunStatus.RUNNING else "",
        str(facts["attempts"] or ""),
        f"{state.sentence}; {facts['final']}" if facts["final"] else state.sentence,
    ]


TABLE_COLUMNS = ["RUN", "JOB", "STATE", "STEP", "LOSS", "LEFT", "ATTEMPTS", "WHY"]


def _time_words(facts: dict[str, Any]) -> str:
    """Return the ETTR and what it is made of."""
    if facts["ettr"] is None:
        return ""
    parts = ", ".join(f"{duration(facts[f'{word}_s'])} {word}" for word in _TIMES)
    queued = f"; {duration(facts['queued_s'])} in the queue" if facts["queued_s"] >= 1 else ""
    return f"{facts['ettr']:.3f}: {parts}{queued}"


def _predicted_words(facts: dict[str, Any]) -> str:
    """Return what the ETTR would be if something ended the run so often without warning."""
    predicted = ", ".join(f"{ettr:.3f} every {every}" for every, ettr in facts["predicted_ettr"].items())
    return f"ETTR by unannounced interruptions: {predicted}" if predicted else ""


def _restart_words(facts: dict[str, Any]) -> str:
    """Return what a start takes, and which parts of it take most."""
    parts = facts["restart_s"]
    longest = sorted(parts, key=lambda part: -parts[part])[:3]
    told = ", ".join(f"{part} {parts[part]:.1f} s" for part in longest)
    return f"{sum(parts.values()):.1f} s from its nodes to its first step: {told}" if parts else ""


def _answers(scores: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{when}: BLEU-4 {score.get('bleu4')}, exact match {score.get('exact_match')} % of {score.get('rows')}"
        for when, score in scores.items()
        if "bleu4" in score
    ]


def _jobs(current: str | None, job_ids: list[str], waiting: list[str], link: list[int] | None) -> str:
    if current is None:
        return ""
    before = [each for each in job_ids if each != current and each not in waiting]
    behind = [each for each in waiting if each != current]
    parts = [
        f"link {link[0]} of {link[1]}" if link else "",
        f"before: {', '.join(before)}" if before else "",
        f"waiting behind it: {', '.join(behind)}" if behind else "",
    ]
    told = "; ".join(part for part in parts if part)
    return f"{current}  ({told})" if told else current


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
