"""The `hpcgemma` command: its commands are loaded when they are called, and errors become two lines."""

from __future__ import annotations

import difflib
import importlib
import sys

import click

from hpcgemma import __version__
from hpcgemma.errors import HpcGemmaError, InputError

COMMANDS = {
    "doctor": "Say what will happen to a job here, and what is at risk.",
    "drill": "Warn, end and kill a tiny run; report what came of it.",
    "data": "Look at a recipe's data, count it, prepare it ahead.",
    "submit": "Plan, check, render and submit a run.",
    "status": "Show where runs stand, and why.",
    "report": "Write a page on a run: time, curves, interruptions.",
    "resume": "Go on with a run from its newest checkpoint.",
    "cancel": "End a run; it is saved first and does not come back.",
    "logs": "Show what a rank has written.",
    "nodes": "Show the nodes that failed your runs, and take it back.",
    "evaluate": "Judge a trained model: its loss, its answers, the targets.",
    "generate": "Ask a trained model.",
    "export": "Write a run's model as a folder, with a model card.",
}
"""Names and help lines of the commands, so that `--help` loads none of them."""

INTERRUPTED_CODE = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a run's life."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"hpcgemma.cli.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one was perhaps meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            meant = f"hpcgemma {close[0]}  (" if close else "("
            raise InputError(f"there is no command {args[0]!r}", f"{meant}valid: {', '.join(COMMANDS)})")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table above."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="hpcgemma")
def cli() -> None:
    """Submit and run Gemma fine-tuning on HPC clusters, and never lose work.

    \b
    Try it here: hpcgemma submit --profile local --recipe svg_captions_tiny --wait
    """


def main() -> None:
    """Run the command line; expected failures print their problem and hint, without a traceback."""
    try:
        code = cli.main(prog_name="hpcgemma", standalone_mode=False)
    except HpcGemmaError as error:
        click.echo(f"Error: {error.problem}", err=True)
        if error.hint:
            click.echo(f"Try:   {error.hint}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        click.echo(f"Error: {error}\nTry:   check that the disk is there, has room, and lets you write", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.exceptions.Abort):
        sys.exit(INTERRUPTED_CODE)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
