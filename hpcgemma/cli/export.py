"""`hpcgemma export`: a run's model as a folder of its own."""

from __future__ import annotations

from pathlib import Path

import click

from hpcgemma.cli import options


@click.command()
@click.argument("run")
@options.checkpoint
@click.option("--to", type=click.Path(path_type=Path), metavar="DIR", help="Where to. Default: RUN/export.")
@click.option("--merge/--adapter", "merge", default=None, help="The whole model, the default, or the adapters alone.")
@click.option("--dtype", type=click.Choice(["bf16", "fp32"]), help="Precision. Default: that of the recipe.")
@click.option("--force", is_flag=True, help="Replace a folder that is there.")
@options.json_output
def export(
    run: str, checkpoint: str | None, to: Path | None, merge: bool | None, dtype: str | None, force: bool, as_json: bool
) -> int:
    """Write a run's model, loadable with from_pretrained, with tokenizer and model card; it is loaded again to check.

    \b
    hpcgemma export gemma2_9b_lora-3 --to gemma2-svg
    hpcgemma export gemma2_9b_lora-3 --checkpoint 400 --adapter
    """
    from hpcgemma.cli import choosing_model, trainer_process
    from hpcgemma.errors import InputError

    chosen = choosing_model.require_model(run, checkpoint)
    if chosen["run"] is None:
        raise InputError(f"{run} is a model's folder, and no run", "hpcgemma status  lists all runs")
    target = to.expanduser().absolute() if to is not None else None
    if target is not None and target.exists() and not force:
        raise InputError(f"{to} exists already", "choose another with --to DIR, or replace it with --force")
    if target is not None and force:
        _check_replaceable(target)
    return trainer_process.run_program(
        "export",
        chosen
        | {"to": str(target) if target else None, "merge": merge, "dtype": dtype, "force": force, "as_json": as_json},
    )


def _check_replaceable(target: Path) -> None:
    """Refuse to replace a folder that holds no exported model: --force must not cost a home folder."""
    from hpcgemma.errors import InputError

    marks = ("config.json", "adapter_config.json")
    if target.is_dir() and any(target.iterdir()) and not any((target / mark).is_file() for mark in marks):
        raise InputError(f"{target} holds no exported model, so it is not replaced", "choose another with --to DIR")
