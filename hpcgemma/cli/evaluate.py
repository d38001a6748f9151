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
@options.as_a_job("on one node, with the GPUs that the run has of one")
@options.json_output
def evaluate(
    model: str,
    checkpoint: str | None,
    data: str | None,
    rows: int | None,
    max_new_tokens: int | None,
    no_generation: bool,
    clip_model: str | None,
    submits: bool,
    walltime: str | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Judge a run, or a folder with a model: held-out loss, perplexity, scores of its answers, targets.

    \b
    hpcgemma evaluate gemma2_9b_lora-3
    hpcgemma evaluate gemma2_9b_lora-3 --checkpoint best --data test.jsonl --rows 200
    hpcgemma evaluate gemma2_9b_lora-3 --submit --wait
    srun hpcgemma evaluate gemma2_9b_lora-3
    """
    from pathlib import Path

    from hpcgemma.cli import choosing_model, evaluation_job, trainer_process
    from hpcgemma.errors import InputError

    options.require_submit(submits, time=walltime, dry_run=dry_run, wait=wait)
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
    request = chosen | {
        "data": data,
        "rows": rows,
        "max_new_tokens": max_new_tokens,
        "generation": not no_generation,
        "clip_model": clip_model,
        "as_json": as_json and not submits,
    }
    if not submits:
        return trainer_process.run_program("evaluate", request)
    if chosen["run"] is None:
        raise InputError(
            f"{model} is no run, so there is no profile that says where its job could run",
            f"in a job of your own: srun hpcgemma evaluate {model} --data {data}",
        )
    return evaluation_job.submit(
        Path(chosen["run"]), request, walltime=walltime, dry_run=dry_run, wait=wait, as_json=as_json
    )
