"""`hpcgemma evaluate`: judge a trained model."""

from __future__ import annotations

import click

from hpcgemma.cli import options


@click.command()
@options.model_argument
@options.checkpoint
@click.option("--data", metavar="FILE", help="Rows to judge it by. Default: the run's held-out rows.")
@click.option("--rows", type=click.IntRange(min=1), help="The first so many rows. Default: all.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), help="Tokens of an answer at most. Default: the recipe's."
)
@click.option("--no-generation", is_flag=True, help="Measure the loss alone, generate no answers.")
@click.option("--clip-model", metavar="PATH", help="Folder or hub name of a CLIP. Default: the recipe's.")
@options.json_output
def evaluate(
    model: str,
    checkpoint: str | None,
    data: str | None,
    rows: int | None,
    max_new_tokens: int | None,
    no_generation: bool,
    clip_model: str | None,
    as_json: bool,
) -> int:
    r"""Judge a run, or a folder with a model: held-out loss, perplexity, scores of its answers, targets.

    \b
    hpcgemma evaluate gemma2_9b_lora-3
    hpcgemma evaluate gemma2_9b_lora-3 --checkpoint best --data test.jsonl --rows 200
    srun hpcgemma evaluate gemma2_9b_lora-3
    """
    from pathlib import Path

    from hpcgemma.cli import choosing_model, trainer_process
    from hpcgemma.errors import InputError

    chosen = choosing_model.require_model(model, checkpoint)
    if chosen["run"] is None and data is None:
        raise InputError(
            f"{model} is no run, so it has no held-out rows", f"hpcgemma evaluate {model} --data FILE.jsonl"
        )
    if clip_model is not None and clip_model.startswith(("/", "./", "../", "~")):
        path = Path(clip_model).expanduser()
        if not path.is_dir():
            raise InputError(f"--clip-model {clip_model} is not a folder", "name a folder, or a model of the hub")
        clip_model = str(path)
    return trainer_process.run_program(
        "evaluate",
        chosen
        | {
            "data": data,
            "rows": rows,
            "max_new_tokens": max_new_tokens,
            "generation": not no_generation,
            "clip_model": clip_model,
            "as_json": as_json,
        },
    )
