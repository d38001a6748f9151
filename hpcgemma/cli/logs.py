"""`hpcgemma logs`: what a rank has written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hpcgemma.cli import options

if TYPE_CHECKING:
    from hpcgemma.runs.folder import RunFolder

_LOOK_S = 0.5


@click.command()
@options.run_argument
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the run ends, through every attempt.")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True, help="Which rank.")
@click.option("--attempt", type=click.IntRange(min=1), help="Which attempt. Default: the last.")
@click.option("--supervisor", is_flag=True, help="What the supervisor wrote, in place of a rank.")
def logs(run: str | None, follow: bool, rank: int, attempt: int | None, supervisor: bool) -> None:
    """Show what a rank has written, in the last attempt of the newest run or of one by name, job id or folder.

    \b
    hpcgemma logs gemma2_9b_lora-3 -f
    hpcgemma logs 2584773 --rank 3 --attempt 2
    """
    from hpcgemma.cli import choosing, console, waiting
    from hpcgemma.errors import InputError
    from hpcgemma.runs import store
    from hpcgemma.slurm.client import SlurmClient

    entry = choosing.newest_run() if run is None else choosing.require_run(run)
    folder = entry.folder

    def log_file(number: int) -> Path:
        return folder.supervisor_log(number) if supervisor else folder.rank_log(number, rank)

    number = attempt or folder.last_attempt()
    if number == 0 and not follow:
        raise InputError(f"run {entry.name} has written nothing yet", f"hpcgemma status {entry.name}  says why")
    if number and not log_file(number).is_file() and not follow:
        raise InputError(
            f"attempt {number} of run {entry.name} has no {log_file(number).name}",
            f"it has: {', '.join(_log_names(folder, number)) or 'no log'}",
        )
    if not follow:
        for piece in _pieces(log_file(number), 0):
            click.echo(piece, nl=False)
        return

    position = 0
    state = None
    poll_s = float(store.read_run_file(folder)["plan"]["poll_interval_s"])
    for seen in waiting.states(entry, SlurmClient(), poll_s):
        state = seen
        newest = attempt or folder.last_attempt()
        while True:
            for piece in _pieces(log_file(number), position) if number else ():
                click.echo(piece, nl=False)
                position += len(piece)
            if number >= newest:
                break
            number, position = number + 1, 0
            console.say(f"--- attempt {number}, {time.strftime('%H:%M:%S')}")
    if state is not None:
        console.say(f"--- {state.status.value}: {state.sentence}")


def _log_names(folder: RunFolder, attempt: int) -> list[str]:
    return sorted(path.name for path in folder.attempt_dir(attempt).glob("*.log"))


def _pieces(path: Path, position: int) -> Iterator[bytes]:
    """Yield what a file holds from a byte on; nothing where it does not exist yet."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            while block := file.read(65536):
                yield block
    except FileNotFoundError:
        return
