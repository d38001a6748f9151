"""All that is known of a run as plain values, as `hpcgemma status --json` prints them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hpcgemma import files
from hpcgemma.runs import store
from hpcgemma.runs.progress import read_progress, read_scores
from hpcgemma.runs.restart import median_restart
from hpcgemma.runs.spans import Span, spans
from hpcgemma.runs.state import RunState, RunStatus, chain_position, count_attempts, waiting_links
from hpcgemma.runs.store import RunEntry
from hpcgemma.runs.time_use import costs, predicted_ettr, time_use_of

_PREDICTED_AT_H = (2, 24)
"""Mean hours between interruptions for which an ETTR is predicted."""


def as_mapping(entry: RunEntry, state: RunState, *, with_time: bool = True) -> dict[str, Any]:
    """Return everything about a run as plain values. These names are what scripts rely on.

    Args:
        entry: The run.
        state: Its state.
        with_time: Whether to add where its time went, for which all of its metrics are read.
    """
    progress = read_progress(entry.folder)
    events = entry.folder.events()
    job = state.job
    position = chain_position(events, state.job_id)
    return {
        "name": entry.name,
        "run_id": entry.run_id,
        "state": state.status.value,
        "sentence": state.sentence,
        "hint": state.hint,
        "profile": entry.profile,
        "recipe": entry.recipe,
        "folder": entry.path,
        "job_id": state.job_id,
        "job_ids": store.job_ids(entry.folder),
        "job_state": job.state if job else None,
        "reason": job.reason if job else None,
        "nodes": job.node_list if job else None,
        "link": position and list(position),
        "waiting_links": [] if state.status.is_final else waiting_links(events),
        "attempts": count_attempts(events),
        "last_ending": _last_ending(events),
        "stragglers": _stragglers(events),
        "step": progress.step if progress else None,
        "total_steps": progress.total_steps if progress else None,
        "loss": progress.loss if progress else None,
        "eval_loss": progress.eval_loss if progress else None,
        "tokens_per_s": progress.tokens_per_s if progress else None,
        "seconds_left": progress.seconds_left if progress and not state.status.is_final else None,
        "answers": read_scores(entry.folder),
        "final": str(entry.folder.final_dir) if entry.folder.final_dir.is_dir() else None,
        **({"time": _time_until_now(entry, state, events)} if with_time else {}),
    }


def _time_until_now(entry: RunEntry, state: RunState, events: list[dict[str, Any]]) -> dict[str, Any]:
    metrics = list(files.read_json_lines(entry.folder.metrics_file))
    return time_facts(events, spans_until_now(state, events, metrics))


def spans_until_now(
    state: RunState, events: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]
) -> list[Span]:
    """Return the pieces of a run's time, until the present where something is working on it or is going to."""
    now = time.time() if state.status.is_active else None
    return spans(events, metrics, now, waits=state.status is RunStatus.PENDING)


def time_facts(events: Sequence[Mapping[str, Any]], pieces: Sequence[Span]) -> dict[str, Any]:
    """Return where a run's time went, its ETTR, and the ETTR that its measured costs predict.

    Args:
        events: The run's events.
        pieces: Its time, cut into pieces.
    """
    known = costs(events)
    predicted = {
        f"{hours} h": round(predicted_ettr(**asdict(known), mtti_s=hours * 3600), 4)
        for hours in _PREDICTED_AT_H
        if known is not None
    }
    parts = {part: round(seconds, 3) for part, seconds in median_restart(events).items()}
    return time_use_of(pieces).as_mapping() | {"predicted_ettr": predicted, "restart_s": parts}


def _last_ending(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return how the newest attempt that is over ended: its kind, why, and what to do where it happens again."""
    ended = next((event for event in reversed(events) if event.get("event") == "ended"), None)
    return None if ended is None else {word: ended.get(word) for word in ("attempt", "ending", "sentence", "hint")}


def _stragglers(events: list[dict[str, Any]]) -> list[str]:
    """Return the sentences on slow ranks of the newest attempt."""
    newest = max((event["attempt"] for event in events if event.get("event") == "started"), default=None)
    return [
        str(event.get("sentence"))
        for event in events
        if event.get("event") == "straggler" and event.get("attempt") == newest
    ]
