"""Write what was played and tried into docs/faults.md, between the marks that are there for it.

Run as ``python -m tests.faults.report --folder FOLDER``. Of trials that were not made the earlier table stays.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcgemma import files

from .matrix.__main__ import outcomes
from .matrix.catalogue import SCENARIOS, Scenario
from .matrix.lab import TRACKINGS

DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"

Outcome = Mapping[str, Any]


def main() -> None:
    """Write the tables for which there are outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where outcomes are kept")
    folder = parser.parse_args().folder
    text = DOCUMENT.read_text(encoding="utf-8")
    if played := outcomes(folder):
        text = between_marks(text, "matrix", matrix_table(played))
    if all((folder / series.file).exists() for series in SERIES):
        text = between_marks(text, "trials", trials_table(folder))
        text = between_marks(text, "moments", moments_table(folder))
    DOCUMENT.write_text(text, encoding="utf-8")


def between_marks(text: str, mark: str, content: str) -> str:
    """Return a text with what stands between the two comments of a mark replaced."""
    day = datetime.datetime.now(datetime.UTC).date()
    stamp = f"{os.cpu_count()} cores, no GPU, a local disk, {day}."
    pattern = re.compile(rf"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{DOCUMENT} has no marks for {mark}")
    return pattern.sub(lambda found: f"{found[1]}\n{stamp}\n\n{content}\n\n{found[2]}", text)


# --- the matrix ----------------------------------------------------------------------------------------------


def matrix_table(played: Mapping[tuple[str, str], Outcome]) -> str:
    """Return the matrix as a table: of each figure that under proctrack/linuxproc, then under proctrack/cgroup."""
    lines = [
        "| row | fault | what happened | lost steps | known, s | saved, s | training, s | bitwise equal |",
        "|---:|---|---|---:|---:|---:|---:|---|",
    ]
    for scenario in SCENARIOS:
        both = [played.get((tracking, scenario.name)) for tracking in TRACKINGS]
        lines.append(_row(scenario, both))
    return "\n".join(lines)


def _row(scenario: Scenario, both: Sequence[Outcome | None]) -> str:
    def cells(word: Callable[[Outcome], str]) -> str:
        found = ["not played" if each is None else "**failed**" if each["problem"] else word(each) for each in both]
        return found[0] if len(set(found)) == 1 else " / ".join(found)

    def seconds(name: str) -> str:
        return cells(lambda each: "-" if each[name] is None else f"{each[name]:.0f}")

    return " | ".join(
        [
            f"| {scenario.row}",
            scenario.fault,
            cells(lambda each: str(each["happened"]).replace("|", "\\|")),
            cells(lambda each: "-" if each["lost_steps"] is None else str(each["lost_steps"])),
            seconds("noticed_s"),
            seconds("saved_s"),
            seconds("training_s"),
            cells(lambda each: {True: "yes", False: "no", None: "-"}[each["equal"]]) + " |",
        ]
    )


# --- the trials ----------------------------------------------------------------------------------------------


def _failures(outcomes: Sequence[Outcome]) -> str:
    return str(sum(bool(each["failed"]) for each in outcomes))


@dataclass(frozen=True)
class Series:
    """One script's trials, and how they are put into words."""

    file: str
    """Of outcomes."""
    what: str
    """A trial, in words."""
    wanted: str
    count: Callable[[Sequence[Outcome]], str]
    """What was made, from the outcomes."""
    failed: Callable[[Sequence[Outcome]], str] = _failures


def _trials(outcomes: Sequence[Outcome]) -> str:
    return f"{len(outcomes):,}"


def _kills(outcomes: Sequence[Outcome]) -> str:
    return f"{len(outcomes)} runs, {sum(len(each['kills']) for each in outcomes)} kills"


def _stops(outcomes: Sequence[Outcome]) -> str:
    return f"{sum(len(each['stops']) for each in outcomes)} stops of {len(outcomes)} runs"


def _lost(outcomes: Sequence[Outcome]) -> str:
    return f"{_failures(outcomes)}, and {sum(each['lost'] for each in outcomes)} steps lost"


SERIES = (
    Series(
        "kill_checkpoints.jsonl",
        "`kill_checkpoints`: SIGKILL of a process that saves checkpoint after checkpoint",
        "1,000",
        _trials,
    ),
    Series(
        "kill_checkpoints_beside.jsonl",
        "`kill_checkpoints --asynchronous`: the same, saves written beside",
        "1,000",
        _trials,
    ),
    Series(
        "kill_runs.jsonl",
        "`kill_runs`: whole runs of one or two ranks, killed up to three times, then resumed to the end",
        "200 runs",
        _kills,
    ),
    Series(
        "stop_ranks.jsonl",
        "`stop_runs --through ranks`: SIGUSR2 or SIGTERM to one rank or all",
        "200 stops",
        _stops,
        _lost,
    ),
    Series(
        "stop_profile.jsonl",
        "`stop_runs --through profile`: SIGUSR2 to the supervisor of the local profile",
        "200 stops",
        _stops,
        _lost,
    ),
    Series(
        "race_takers.jsonl",
        "`race_takers`: 100 processes take the lock of a run whose holder is gone",
        "100 races",
        _trials,
    ),
    Series(
        "stall_submits.jsonl",
        "`stall_submits`: `hpcgemma submit` while slurmctld hangs for 0.5 to 60 s, from a random moment on",
        "100",
        _trials,
    ),
)


def trials_table(folder: Path) -> str:
    """Return the trials as a table."""
    lines = ["| trials | made | wanted | failed |", "|---|---:|---:|---:|"]
    for series in SERIES:
        found = list(files.read_json_lines(folder / series.file))
        lines.append(f"| {series.what} | {series.count(found)} | {series.wanted} | {series.failed(found)} |")
    return "\n".join(lines)


def moments_table(folder: Path) -> str:
    """Return in which moments the process that saved was killed, and what rank 0 of a run was doing."""
    waited, beside = (
        Counter(str(each["killed while"]) for each in files.read_json_lines(folder / series.file))
        for series in SERIES[:2]
    )
    lines = ["Where the process that saved was killed, seen from what it left:", ""]
    lines += ["| killed while | waited for | beside |", "|---|---:|---:|"]
    lines += [f"| {moment} | {count} | {beside[moment]} |" for moment, count in waited.most_common()]
    kills = Counter(kill for each in files.read_json_lines(folder / SERIES[2].file) for kill in each["kills"])
    told = ", ".join(f"{phase} {count}" for phase, count in kills.most_common())
    return "\n".join([*lines, "", f"What rank 0 of a run was doing when it was killed, by its own word: {told}."])


if __name__ == "__main__":
    main()
