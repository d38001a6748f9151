"""All that the report of a run says, gathered from its folder."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

from hpcgemma import __version__, files
from hpcgemma.reports.attempts import AttemptRow, attempt_rows
from hpcgemma.reports.charts import Chart, charts_of
from hpcgemma.reports.incidents import Incident, incidents_of
from hpcgemma.reports.scores import ScoreTable, score_table
from hpcgemma.runs.facts import as_mapping, spans_until_now, time_facts
from hpcgemma.runs.progress import read_evaluation
from hpcgemma.runs.spans import Span
from hpcgemma.runs.state import RunState
from hpcgemma.runs.store import RunEntry, read_run_file
from hpcgemma.runs.time_use import TimeUse, time_use_of

_HIDDEN_OF_PLAN = ("env", "unset")
"""Of the plan; the values of an environment may be secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run as it stood when the report was made."""

    made_at: float
    """Seconds since 1970."""
    made_by: str
    facts: dict[str, Any]
    """As `hpcgemma status RUN --json` prints them."""
    pieces: tuple[Span, ...]
    attempts: tuple[AttemptRow, ...]
    incidents: tuple[Incident, ...]
    charts: tuple[Chart, ...]
    scores: ScoreTable
    ran: dict[str, Any]
    """What exactly ran: versions, plan, recipe."""

    @property
    def use(self) -> TimeUse:
        """Where the time went."""
        return time_use_of(self.pieces)

    def as_mapping(self) -> dict[str, Any]:
        """Return the report as plain values. These names are what scripts rely on."""
        return dataclasses.asdict(self)


def report_of(entry: RunEntry, state: RunState) -> Report:
    """Return the report of a run in a state.

    Raises:
        HpcGemmaError: The folder is no run folder, or its run.yaml is broken.
    """
    run_file = read_run_file(entry.folder)
    events = entry.folder.events()
    metrics = list(files.read_json_lines(entry.folder.metrics_file))
    pieces = spans_until_now(state, events, metrics)
    return Report(
        made_at=time.time(),
        made_by=f"hpcgemma {__version__}",
        facts=as_mapping(entry, state, with_time=False) | {"time": time_facts(events, pieces)},
        pieces=tuple(pieces),
        attempts=tuple(attempt_rows(events, metrics, pieces)),
        incidents=tuple(incidents_of(events, files.read_json_lines(entry.folder.monitors_file))),
        charts=charts_of(metrics),
        scores=score_table(read_evaluation(entry.folder)),
        ran={
            "created": run_file.get("created"),
            "submitted_from": run_file.get("submitted_from"),
            "versions": run_file.get("versions", {}),
            "plan": {name: value for name, value in run_file["plan"].items() if name not in _HIDDEN_OF_PLAN},
            "recipe": run_file.get("recipe", {}),
        },
    )
