"""The report as one HTML file: no script, style or picture comes from elsewhere, and nothing leaves it.

All that a run says of itself, its logs and its data among them, is text here: the template escapes it, and the page's
content security policy lets no other script or style run than those whose hashes it names (W3C, Content Security
Policy Level 3, section 2.3.1).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from hpcgemma import files
from hpcgemma.errors import InputError
from hpcgemma.reports.attempts import AttemptRow
from hpcgemma.reports.bars import WIDTH, share_bar, shares_of, ticks, timeline
from hpcgemma.reports.content import Report
from hpcgemma.runs.ways import IN_WORDS
from hpcgemma.walltime import duration

MARK = "A report of hpcgemma"
"""By which a file is known that may be written over."""
_PARTS = Path(__file__).parent / "page"
_STYLES = ("uplot/uPlot.min.css", "report.css")
_SCRIPTS = ("uplot/uPlot.iife.min.js", "report.js")
_FILE_MODE = 0o600
_MARK_BYTES = 256


def html(report: Report) -> str:
    """Return the page."""
    styles = [_part(name) for name in _STYLES]
    scripts = [_part(name) for name in _SCRIPTS]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PARTS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "moment": _moment,
        "duration": duration,
        "number": _number,
        "score": _score,
        "seconds": _seconds,
    }
    shares = shares_of(report.use)
    return environment.get_template("report.html.j2").render(
        mark=MARK,
        policy=_policy(styles, scripts),
        styles=styles,
        scripts=scripts,
        report=report,
        facts=report.facts,
        tiles=_tiles(report),
        bar_width=WIDTH,
        shares=shares,
        share_bar=share_bar(shares),
        timeline=timeline(report.pieces),
        ticks=ticks(report.pieces),
        went_on=_went_on,
        curves=_curves(report),
        recipe=_yaml(report.ran["recipe"]),
        plan=_yaml(report.ran["plan"]),
        versions=_yaml(report.ran["versions"]),
    )


def write_page(report: Report, target: Path) -> None:
    """Write the page, readable by its owner only.

    Raises:
        InputError: There is a file that is no report, or none can be written there.
    """
    content = html(report).encode("utf-8")
    try:
        if target.exists() and not _is_page(target):
            raise InputError(f"{target} exists and is no report of hpcgemma", "choose another file with --to")
        files.write_bytes_atomically(target, content, mode=_FILE_MODE)
    except OSError as error:
        raise InputError(
            f"the report cannot be written to {target}: {os.strerror(error.errno or 0)}",
            "choose a file in a folder that exists and that you may write to, with --to",
        ) from error


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(_MARK_BYTES)


def _part(name: str) -> Markup:
    """Return a script or a style of ours, which goes into the page as it is."""
    return Markup((_PARTS / name).read_text(encoding="utf-8").strip())  # noqa: S704 - it is shipped with this file


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    def hashes(parts: Sequence[str]) -> str:
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(part.encode('utf-8')).digest()).decode('ascii')}'"
            for part in parts
        )

    return (
        f"default-src 'none'; style-src {hashes(styles)}; script-src {hashes(scripts)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _curves(report: Report) -> dict[str, Any]:
    """Return what the page's script draws: the charts, and the steps from which attempts went on."""
    return {
        "charts": [
            {"title": chart.title, "names": chart.names, "data": [chart.steps, *chart.values]}
            for chart in report.charts
        ],
        "resumed": [row.first_step for row in report.attempts if row.first_step],
    }


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """Return the figures at the top of the page: what it is, its value, and a word to it."""
    facts, use = report.facts, report.use
    interruptions = max(0, len(report.attempts) - 1)
    loss, held_out, speed = facts["loss"], facts["eval_loss"], facts["tokens_per_s"]
    return [
        ("ETTR", "-" if use.ettr is None else f"{use.ettr:.3f}", "productive share of the time with nodes"),
        ("with nodes", duration(use.allocated_s), f"{duration(use.queued_s)} in the queue"),
        ("interruptions", str(interruptions), f"{use.lost_steps:,} steps made again"),
        ("loss", _number(loss, 4), "" if held_out is None else f"held out {held_out:.4f}"),
        ("tokens/s", "-" if speed is None else f"{speed:,.0f}", "at the last step, over all ranks"),
    ]


def _went_on(row: AttemptRow) -> str:
    return "" if row.way is None else IN_WORDS[row.way]


def _yaml(value: Any) -> str:
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True)


def _moment(seconds: float | None) -> str:
    """Return a moment in the time of the place where the report is made."""
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"


def _number(value: float | None, digits: int) -> str:
    """Return a figure with so many digits behind the point, or a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def _score(value: float | None) -> str:
    """Return a score, of which small ones have more digits; or a dash."""
    return _number(value, 4 if value is not None and abs(value) < 1 else 2)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
