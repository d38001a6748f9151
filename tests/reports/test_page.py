"""The page as text: what is in it, and what must not be."""

from __future__ import annotations

import base64
import hashlib
import re

from hpcgemma.reports.content import Report, report_of
from hpcgemma.reports.page import html
from hpcgemma.runs import tracking
from hpcgemma.runs.store import RunEntry
from hpcgemma.slurm.client import SlurmClient
from tests.reports.eventful import EVENTS, HOSTILE, make_run


def made(entry: RunEntry) -> Report:
    return report_of(entry, tracking.track([entry], SlurmClient())[0])


def test_the_figures_are_those_of_status(eventful: RunEntry) -> None:
    report = made(eventful)
    assert report.facts["state"] == "COMPLETED"
    assert report.facts["time"]["ettr"] == round(report.use.ettr or 0, 4)
    assert report.use.lost_steps == 37
    page = html(report)
    assert f"<strong>{report.facts['time']['ettr']:.3f}</strong>" in page
    assert "37 steps made again" in page
    for words in ("in a successor", "in the same allocation", "warned by SIGTERM", "at least 30", "missed"):
        assert words in page


def test_what_a_run_says_is_text_and_never_markup(eventful: RunEntry) -> None:
    page = html(made(eventful))
    assert HOSTILE not in page
    assert page.count("<script") == 3  # the curves, uPlot, and ours
    assert "hacked = 1</script>" not in page
    assert "{{ 7 * 7 }}" in page


def test_the_environment_of_a_run_is_not_in_its_report(eventful: RunEntry) -> None:
    report = made(eventful)
    assert "not for others" not in html(report)
    assert "not for others" not in str(report.as_mapping())
    assert "HF_TOKEN" not in html(report)


def test_the_policy_names_every_script_and_style_and_nothing_else_may_be_loaded(eventful: RunEntry) -> None:
    page = html(made(eventful))
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    parts = re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", page, re.DOTALL)
    hashes = {base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts}
    assert set(re.findall(r"sha256-([^&]*)&#39;", policy)) == hashes
    assert policy.startswith("default-src &#39;none&#39;;")
    assert "unsafe" not in policy
    assert re.findall(r'\b(?:src|href)="', page) == []


def test_a_run_that_waits_has_a_page_without_figures(eventful: RunEntry) -> None:
    waiting = make_run(eventful.folder.path.parent, events=EVENTS[:1], metrics=[], name="waiting")
    page = html(made(waiting))
    assert "The run has not had its nodes yet." in page
    assert "No step has been logged yet." in page
    assert "No attempt has had its nodes yet." in page


def test_damaged_files_of_a_run_cost_their_part_of_the_page_alone(eventful: RunEntry) -> None:
    folder = eventful.folder
    folder.evaluation_file.write_text('{"trained": 5}')
    folder.monitors_file.write_text('{"step": 3, "signs": null}\nhalf a li')
    with folder.metrics_file.open("a") as file:
        file.write('{"step": 301, "total_steps": 300, "loss": NaN, "time": 1.0, "attempt": 3}\n{"step":')
    page = html(made(eventful))
    assert "What its answers scored" not in page
    assert "Loss per learned token" in page
