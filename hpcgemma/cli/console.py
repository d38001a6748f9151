"""What a person sees. The only file that knows rich."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

STATUS_STYLE = {
    "PENDING": "yellow",
    "RUNNING": "cyan",
    "COMPLETED": "green",
    "FAILED": "red",
    "INTERRUPTED": "magenta",
    "CANCELLED": "dim",
    "UNKNOWN": "dim",
}


_WIDTH = 160
"""Columns of a table that is not shown on a terminal."""


def say(text: str) -> None:
    """Print a message to standard error, which keeps standard output for results."""
    click.echo(text, err=True)


def result(text: str) -> None:
    """Print a result to standard output."""
    click.echo(text)


def result_json(value: Any) -> None:
    """Print a value as JSON to standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; a column named STATE is coloured."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(_grid(columns, rows))


def table_text(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as lines of text, without colours."""
    from rich.console import Console

    file = io.StringIO()
    Console(file=file, highlight=False, width=_WIDTH).print(_grid(columns, rows))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(
            *(
                Text(cell, style=STATUS_STYLE.get(cell, "") if column == "STATE" else "")
                for column, cell in zip(columns, row, strict=True)
            )
        )
    return grid


def facts(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values, a pair a line, values aligned; empty values are left out."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        label = click.style(f"{name:<{width}}", bold=True)
        style = STATUS_STYLE.get(value.split(":")[0], "") if name == "state" else ""
        colour = style if style and style != "dim" else None
        click.echo(f"{label}  {click.style(value, fg=colour) if colour else value}")


class ProgressLine:
    """A progress bar on a terminal; elsewhere a line whenever the words change."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task
        self._last = ""

    def show(self, words: str, step: int | None = None, total: int | None = None, detail: str = "") -> None:
        """Show where the run stands.

        Args:
            words: State in a few words.
            step: Steps done; None before the first.
            total: Steps in all.
            detail: Figures behind the bar.
        """
        if self._bar is not None:
            self._bar.update(self._task, description=words, completed=step or 0, total=total, detail=detail)
        elif words != self._last:
            say(words)
        self._last = words


@contextmanager
def progress() -> Iterator[ProgressLine]:
    """Show a progress bar while the block runs."""
    if not sys.stderr.isatty():
        yield ProgressLine(None, None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        yield ProgressLine(bar, bar.add_task("", total=None, detail=""))
