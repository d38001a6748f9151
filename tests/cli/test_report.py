"""`hpcgemma report` as a user calls it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpcgemma.cli.report import report
from hpcgemma.errors import InputError
from hpcgemma.runs.store import RunEntry
from tests.reports.eventful import EVENTS, METRICS, make_run
from tests.scenario import Training


@pytest.fixture
def run(tmp_path: Path) -> RunEntry:
    return make_run(tmp_path / "runs", events=EVENTS, metrics=METRICS)


def call(*arguments: str) -> str:
    return CliRunner().invoke(report, arguments, catch_exceptions=False, standalone_mode=False).stdout


def test_the_page_lies_in_the_run_folder_and_nobody_else_can_read_it(run: RunEntry) -> None:
    assert call("eventful") == f"{run.folder.report_file}\n"
    assert stat.S_IMODE(run.folder.report_file.stat().st_mode) == 0o600
    assert call() == f"{run.folder.report_file}\n"  # of the newest run, over the old page


def test_it_can_be_written_elsewhere(run: RunEntry, tmp_path: Path) -> None:
    assert call("7", "--to", str(tmp_path / "page.html")).strip() == str(tmp_path / "page.html")
    assert call("eventful", "--to", str(tmp_path)).strip() == str(tmp_path / "eventful.html")
    assert "eventful: COMPLETED" in (tmp_path / "eventful.html").read_text()


def test_json_has_the_same_figures(run: RunEntry) -> None:
    said = json.loads(call("eventful", "--json"))
    assert said["file"] == str(run.folder.report_file)
    assert said["facts"]["time"]["lost_steps"] == 37
    assert [row["way"] for row in said["attempts"]] == ["successor", "in place", None]


def test_what_is_no_report_is_not_written_over(run: RunEntry, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.html"
    thesis.write_text("ten years of work")
    with pytest.raises(InputError, match=r"thesis.html exists and is no report of hpcgemma"):
        call("eventful", "--to", str(thesis))
    assert thesis.read_text() == "ten years of work"


def test_a_place_that_cannot_be_written_to_is_named(run: RunEntry, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the report cannot be written to .*nowhere/page.html: No such file"):
        call("eventful", "--to", str(tmp_path / "nowhere" / "page.html"))


def test_unknown_and_missing_runs_are_named() -> None:
    with pytest.raises(InputError, match="there are no runs yet"):
        call()
    with pytest.raises(InputError, match="no run of hpcgemma has the name or folder 'nothing'"):
        call("nothing")


def test_a_real_run_reports_what_its_status_says(reference: Training, tmp_path: Path) -> None:
    page = tmp_path / "reference.html"
    said = reference.terminal.json("report", reference.name, "--to", str(page))
    assert said["facts"]["time"] == reference.status()["time"]
    assert [chart["title"] for chart in said["charts"]][:2] == ["Loss per learned token", "Learning rate"]
    assert len(said["charts"][0]["steps"]) == len(reference.losses())
    assert f"{reference.name}: COMPLETED" in page.read_text()
