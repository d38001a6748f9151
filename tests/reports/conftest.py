from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcgemma.runs.store import RunEntry
from tests.reports.eventful import EVALUATION, EVENTS, METRICS, READINGS, make_run, write_lines


@pytest.fixture
def eventful(tmp_path: Path) -> RunEntry:
    """A run that was preempted, killed, and finished."""
    entry = make_run(tmp_path / "runs", events=EVENTS, metrics=METRICS)
    folder = entry.folder
    folder.evaluation_file.write_text(json.dumps(EVALUATION))
    write_lines(folder.monitors_file, READINGS)
    return entry
