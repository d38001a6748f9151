"""`hpcgemma data`: look at a recipe's data, count it, or prepare it before any job needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hpcgemma.cli import options

if TYPE_CHECKING:
    from hpcgemma.recipes.types import Recipe

_recipe = click.option("--recipe", "recipe_name", required=True, metavar="NAME", help="Recipe: a name or a file.")


@click.group()
def data() -> None:
    """Look at a recipe's data, count it, prepare it ahead.

    \b
    hpcgemma data preview --recipe gemma2_9b_lora --set data.train=train.jsonl
    """


@data.command()
@_recipe
@options.settings
@click.option("--rows", type=click.IntRange(min=1), default=3, show_default=True, help="Rows to show.")
def preview(recipe_name: str, settings: tuple[str, ...], rows: int) -> int:
    """Show the first rows as the model sees them, with the tokens that are learned marked.

    \b
    hpcgemma data preview --recipe gemma2_9b_lora --set data.train=train.jsonl --rows 5
    """
    return _run(_load(recipe_name, settings), what="preview", rows=rows)


@data.command()
@_recipe
@options.settings
@click.option("--max-length", type=click.IntRange(min=2), help="Tokens of a row at most. Default: the recipe's.")
@options.json_output
def stats(recipe_name: str, settings: tuple[str, ...], max_length: int | None, as_json: bool) -> int:
    """Count rows and tokens, and say what a maximum length would cut off.

    \b
    hpcgemma data stats --recipe gemma2_9b_lora --set data.train=train.jsonl --max-length 2048
    """
    return _run(_load(recipe_name, settings), what="stats", max_length=max_length, as_json=as_json)


@data.command()
@_recipe
@options.settings
@click.option("--profile", "profile_name", default="local", show_default=True, metavar="NAME", help="Cluster profile.")
@click.option("--account", metavar="NAME", envvar="HPCGEMMA_ACCOUNT", help="Account. [env: HPCGEMMA_ACCOUNT]")
@click.option(
    "--runs-dir", metavar="DIR", envvar="HPCGEMMA_RUNS_DIR", help="Folder of run folders. [env: HPCGEMMA_RUNS_DIR]"
)
@options.as_a_job("without a GPU, in the profile's CPU queue")
@options.json_output
def prepare(
    recipe_name: str,
    settings: tuple[str, ...],
    profile_name: str,
    account: str | None,
    runs_dir: str | None,
    submits: bool,
    walltime: str | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Tokenize the data now, so that runs with the same data and settings start at once.

    \b
    hpcgemma data prepare --recipe gemma2_9b_lora --set data.train=train.jsonl
    hpcgemma data prepare --recipe gemma2_9b_lora --set data.train=train.jsonl --profile leonardo --submit
    """
    from hpcgemma import userconfig
    from hpcgemma.cli import preparation_job
    from hpcgemma.profiles import load_profile

    options.require_submit(submits, time=walltime, dry_run=dry_run, wait=wait)
    profile, config = load_profile(profile_name), userconfig.load_user_config()
    account = userconfig.resolve_account(account, profile, config)
    folder = userconfig.resolve_runs_dir(runs_dir, profile, config, account)
    recipe = _load(recipe_name, settings)
    if not submits:
        return _run(recipe, what="prepare", runs_dir=str(folder), as_json=as_json)
    return preparation_job.submit(
        profile, recipe, folder, account=account, walltime=walltime, dry_run=dry_run, wait=wait, as_json=as_json
    )


def _load(name: str, settings: tuple[str, ...]) -> Recipe:
    from pathlib import Path

    from hpcgemma.recipes import load_recipe
    from hpcgemma.recipes.paths import with_absolute_paths

    return with_absolute_paths(load_recipe(name, settings), Path.cwd())


def _run(recipe: Recipe, **request: Any) -> int:
    from hpcgemma.cli.trainer_process import run_program

    return run_program("data", {"recipe": recipe.model_dump(mode="json"), **request})
