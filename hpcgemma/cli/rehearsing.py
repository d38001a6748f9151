"""Going through a drill's acts before a person's eyes, and telling them what was seen."""

from __future__ import annotations

import dataclasses
import itertools
import json
import signal
from collections.abc import Sequence

from hpcgemma import files
from hpcgemma.cli import console, describe
from hpcgemma.drill.acts import Act
from hpcgemma.drill.outcome import outcome_of
from hpcgemma.drill.rehearsal import Rehearsal
from hpcgemma.drill.report import COLUMNS, Prediction, Report, lines_of, remarks_on, rows
from hpcgemma.drill.stage import LocalStage, SlurmStage
from hpcgemma.errors import HpcGemmaError, SchedulerError
from hpcgemma.plan import Plan
from hpcgemma.runs.lead import lead_of
from hpcgemma.runs.progress import read_progress
from hpcgemma.runs.store import RunEntry
from hpcgemma.slurm.client import SlurmClient

_INTERRUPTED_CODE = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


def rehearse(
    entry: RunEntry,
    plan: Plan,
    client: SlurmClient,
    acts: Sequence[Act],
    prediction: Prediction,
    *,
    place: str,
    interval: int,
    as_json: bool,
) -> int:
    """Go through the acts with a line that says where they stand, report, and return the exit code.

    Ctrl-C, and what ends a terminal, cancel the run.

    Args:
        entry: The run, submitted.
        plan: Its plan.
        client: Runs Slurm's commands.
        acts: What is done to it.
        prediction: What was to be expected.
        place: Where it runs, in words.
        interval: Steps between two checkpoints.
        as_json: Print JSON.

    Raises:
        SchedulerError: Slurm did not answer for long; what was seen so far is reported.
    """
    stage = SlurmStage(plan, client) if plan.scheduler == "slurm" else LocalStage(plan)
    code, trouble = 0, None
    with console.progress() as line:

        def show(words: str) -> None:
            figures = read_progress(entry.folder)
            if figures is None or not figures.total_steps:
                line.show(words)
            else:
                line.show(words, figures.step, figures.total_steps, describe.figures(figures))

        rehearsal = Rehearsal(entry, plan, client, stage, interval=interval, show=show)
        try:
            _end_as_by_ctrl_c()
            rehearsal.run(acts)
        except KeyboardInterrupt:
            code = _INTERRUPTED_CODE
        except HpcGemmaError as error:
            code, trouble = error.exit_code, error
    if code:
        _abandon(rehearsal, entry)
    report = _report(rehearsal, entry, acts, prediction, place, interval)
    _keep_and_show(report, entry, as_json)
    if trouble is not None:
        raise trouble
    return code or int(report.has_failed)


def _end_as_by_ctrl_c() -> None:
    """Let a terminal that closes, and a kill, end the drill as Ctrl-C does: the run is cancelled, not left behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one of them
            signal.signal(number, signal.default_int_handler)


def _abandon(rehearsal: Rehearsal, entry: RunEntry) -> None:
    """Cancel the run, and say so."""
    try:
        rehearsal.abandon()
        console.say(f"\nrun {entry.name} is cancelled: it saves and ends")
    except SchedulerError as error:
        console.say(f"\nrun {entry.name} could not be cancelled: {error.problem}; later: hpcgemma cancel {entry.name}")


def _report(
    rehearsal: Rehearsal, entry: RunEntry, acts: Sequence[Act], prediction: Prediction, place: str, interval: int
) -> Report:
    """Return the report of what was done so far."""
    events, metrics = entry.folder.events(), list(files.read_json_lines(entry.folder.metrics_file))
    deeds = rehearsal.deeds
    outcomes = tuple(
        outcome_of(deed, events, metrics, interval=interval, until=following.at if following else None)
        for deed, following in itertools.pairwise([*deeds, None])
        if deed is not None
    )
    limited = next((deed.job_id for deed in deeds if deed.limit_at is not None), None)
    if limited is not None:
        prediction = dataclasses.replace(prediction, lead_s=lead_of(events, limited, prediction.lead_s))
    return Report(
        run=entry.name,
        folder=entry.path,
        profile=entry.profile,
        scheduler=entry.scheduler,
        place=place,
        interval=interval,
        planned=tuple(acts),
        outcomes=outcomes,
        remarks=remarks_on(outcomes, prediction),
        end=rehearsal.end,
    )


def _keep_and_show(report: Report, entry: RunEntry, as_json: bool) -> None:
    """Print the report, and keep it in the run folder in both forms."""
    text = "\n".join([console.table_text(COLUMNS, rows(report.outcomes)), *lines_of(report)]) + "\n"
    try:
        files.write_atomically(entry.folder.drill_file, json.dumps(report.as_mapping(), indent=2) + "\n")
        files.write_atomically(entry.folder.drill_text_file, text)
    except OSError as error:
        console.say(f"the report could not be kept in {entry.path}: {error.strerror}")
    if as_json:
        console.result_json(report.as_mapping())
        return
    console.table(COLUMNS, rows(report.outcomes))
    for line in lines_of(report):
        console.result(line)
    console.say(f"kept in {entry.folder.drill_text_file} and {entry.folder.drill_file.name}")
