"""Options that several commands share, each with its environment variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

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
walltime: Decorator = click.option(
    "--time", "walltime", metavar="HH:MM:SS", help="Time limit of one job; the run goes on in further jobs."
)
run_argument: Decorator = click.argument("run", metavar="[RUN]", required=False)
model_argument: Decorator = click.argument("model", metavar="RUN|FOLDER")
checkpoint: Decorator = click.option(
    "--checkpoint",
    metavar="STEP",
    help="A step, best, latest or final. Default: final, or the latest where the run has not ended.",
)
