"""A run with an eventful life, whose every text is hostile to a page."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcgemma.files import append_json_line
from hpcgemma.runs import store
from hpcgemma.runs.store import RunEntry

START = 1_790_000_000.0
"""When it was submitted, in seconds since 1970."""

HOSTILE = "</script></style><script>hacked = 1</script><img src=x onerror='hacked = 2'>\"'&{{ 7 * 7 }}"

RUN_FILE = {
    "schema_version": store.SCHEMA_VERSION,
    "run_id": "0123456789ab",
    "created": START,
    "submitted_from": f"/home/you/{HOSTILE}",
    "versions": {"hpcgemma": "0.1.0", "libraries": {"torch": "2.13.0"}},
    "plan": {
        "strategy": "ddp",
        "strategy_reason": HOSTILE,
        "nodes": 2,
        "env": {"WANDB_API_KEY": "not for others"},
        "unset": ["HF_TOKEN"],
    },
    "recipe": {"name": "captions", "description": HOSTILE},
    "profile": {"name": "leonardo"},
}


def _event(at: float, kind: str, **facts: Any) -> Mapping[str, Any]:
    return {"time": START + at, "event": kind, **facts}


def _attempt(seconds: float, number: int, job_id: str, step: int) -> list[Mapping[str, Any]]:
    parts = {"imports": 6.0, "meeting": 1.0, "model": 2.0, "checkpoint": 0.5, "rehearsal": 0.5}
    return [
        _event(seconds, "began", attempt=number, job_id=job_id, age_s=1.0),
        _event(seconds + 4, "started", attempt=number, job_id=job_id, nodes=2, node_list="node[1-2]", ranks=8),
        _event(seconds + 20, "training", attempt=number, step=step, parts=parts),
    ]


EVENTS = [
    _event(0, "submitted", job_id="7", by="launcher", profile="leonardo", lead_s=90),
    *_attempt(600, 1, "7", 0),
    _event(720, "saved", step=100, samples=1600, seconds=2.0, stall_s=2.0),
    _event(730, "straggler", attempt=1, rank=3, sentence=HOSTILE),
    _event(760, "warned", job_id="7", signal="SIGTERM", cause="preempted"),
    _event(762, "saved", step=138, samples=2208, seconds=2.0, stall_s=2.0),
    _event(764, "ended", attempt=1, job_id="7", ending="stopped", sentence=f"preempted {HOSTILE}", hint="", step=138),
    _event(765, "continued", by="successor", job_id="8", lead_s=90),
    *_attempt(900, 2, "8", 138),
    _event(1010, "saved", step=200, samples=3200, seconds=2.0, stall_s=2.0),
    _event(1030, "save_failed", step=220, problem=HOSTILE, seconds=1.0),
    _event(
        1060, "ended", attempt=2, job_id="8", ending="signal", sentence="rank 0 was killed", hint=HOSTILE, step=None
    ),
    _event(1061, "relaunched", attempt=3, job_id="8"),
    *_attempt(1062, 3, "8", 200),
    _event(1180, "saved", step=300, samples=4800, seconds=2.0, stall_s=2.0),
    _event(1184, "ended", attempt=3, job_id="8", ending="finished", sentence="finished at step 300", hint="", step=300),
    _event(1184, "finished", step=300, job_id="8"),
]


def _steps(number: int, first: int, last: int, began: float) -> list[Mapping[str, Any]]:
    return [
        {
            "step": step,
            "total_steps": 300,
            "samples": 16 * step,
            "epoch": step / 100,
            "loss": 6 / math.sqrt(step),
            "learning_rate": 1e-4,
            "grad_norm": 1 + step % 7,
            "tokens": 1000,
            "target_tokens": 200,
            "tokens_per_s": 20_000.0 + step,
            "peak_memory_gib": None,
            "time": START + began + step - first,
            "attempt": number,
        }
        for step in range(first, last + 1)
    ]


METRICS = [
    *_steps(1, 1, 138, 621),
    {"step": 100, "samples": 1600, "eval_loss": 0.8, "time": START + 722, "attempt": 1},
    {"step": 100, "samples": 1600, "monitors/attention_entropy": 2.5, "time": START + 723, "attempt": 1},
    *_steps(2, 139, 237, 921),
    {"step": 200, "samples": 3200, "eval_loss": 0.6, "time": START + 1011, "attempt": 2},
    {"step": 200, "samples": 3200, "monitors/attention_entropy": 2.1, "time": START + 1012, "attempt": 2},
    *_steps(3, 201, 300, 1083),
]

EVALUATION = {
    "untrained": {"rows": 8, "bleu4": 0.0, "notes": [HOSTILE], "examples": [{"prompt": HOSTILE, "answer": HOSTILE}]},
    "trained": {
        "rows": 8,
        "bleu4": 31.5,
        "eval_loss": 0.0612,
        "bleu_signature": "nrefs:1",
        "instruction_checks": {"format": 90.0},
        "targets": {
            "bleu4": {"at_least": 30.0, "value": 31.5, "met": True},
            "eval_loss": {"at_most": 0.05, "value": 0.0612, "met": False},
            "clip_score": {"at_least": 25.0, "value": None, "met": None},
        },
        "examples": [{"prompt": HOSTILE, "reference": "a red line", "answer": ""}],
    },
}

READINGS = [
    {"step": 100, "signs": [], "time": START + 723},
    {"step": 200, "signs": [f"9 of 24 heads look at one token only {HOSTILE}"], "time": START + 1012},
]


def make_run(
    runs_dir: Path, *, events: list[Mapping[str, Any]], metrics: list[Mapping[str, Any]], name: str = "eventful"
) -> RunEntry:
    """Make a run of a folder whose events and metrics are these; it is found by its name."""
    entry = RunEntry(
        run_id=str(RUN_FILE["run_id"]),
        name=name,
        path=str(runs_dir / name),
        profile="leonardo",
        recipe=HOSTILE,
        scheduler="none",
        created=START,
    )
    folder = store.create_run(entry, json.loads(json.dumps(RUN_FILE)))
    write_lines(folder.events_file, events)
    write_lines(folder.metrics_file, metrics)
    return entry


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    for line in lines:
        append_json_line(path, dict(line))
