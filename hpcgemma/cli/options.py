"""Options that several commands share, each with its environment variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from hpcgemma.changes import KINDS
from hpcgemma.errors import InputError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

json_output: Decorator = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on standard output; messages go to standard error."
)
dry_run: Decorator = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
wait: Decorator = click.option(
    "--wait", is_flag=True, help="Stay and show progress until the run ends. Ctrl-C leaves it running."
)
settings: Decorator = click.option(
    "--set", "settings", multiple=True, metavar="A.B=C", help="Set a field of the recipe; repeatable."
)
allow_change: Decorator = click.option(
    "--allow-change",
    "allowed",
    type=click.Choice(KINDS),
    multiple=True,
    help="Go on although the recipe, the data or the libraries have changed, and so the result; code: with the "
    "hpcgemma that is installed now, not with the run's own copy. Repeatable.",
)
walltime: Decorator = click.option(
    "--time", "walltime", metavar="HH:MM:SS", help="Time limit of one job; the run goes on in further jobs."
)
links: Decorator = click.option(
    "--links",
    type=click.IntRange(min=1),
    metavar="N",
    help="Queue N jobs at once, each behind those before it, and no more: the run takes one after the other, those it "
    "does not need are cancelled, and at the time limit of the last it stops. Default: as many as it takes, each "
    "submitted when the one before it ends.",
)
run_argument: Decorator = click.argument("run", metavar="[RUN]", required=False)
model_argument: Decorator = click.argument("model", metavar="RUN|FOLDER")
checkpoint: Decorator = click.option(
    "--checkpoint",
    metavar="STEP",
    help="A step, best, latest or final. Default: final, or the latest where the run has not ended.",
)


def as_a_job(where: str) -> Decorator:
    """Return the options of a command whose work can be a job of its own: --submit, --time, --dry-run, --wait.

    Args:
        where: Where that job runs, as the end of a sentence.
    """
    added: list[Decorator] = [
        click.option("--submit", "submits", is_flag=True, help=f"Do it in a job of its own, {where}."),
        click.option("--time", "walltime", metavar="HH:MM:SS", help="With --submit: time limit of the job."),
        click.option("--dry-run", is_flag=True, help="With --submit: print the job's script, and submit nothing."),
        click.option(
            "--wait", is_flag=True, help="With --submit: stay, and show what it prints. Ctrl-C leaves it alone."
        ),
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(added):
            command = option(command)
        return command

    return decorate


def require_submit(submits: bool, **given: Any) -> None:
    """Refuse options that say something of a job where none is submitted.

    Raises:
        InputError: There are some.
    """
    names = ", ".join(f"--{name.replace('_', '-')}" for name, value in given.items() if value)
    if names and not submits:
        raise InputError(f"{names}: only with --submit, which is not given", "add --submit")
