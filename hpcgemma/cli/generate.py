"""`hpcgemma generate`: ask a trained model."""

from __future__ import annotations

from pathlib import Path

import click

from hpcgemma.cli import options


@click.command()
@options.model_argument
@click.argument("texts", nargs=-1)
@options.checkpoint
@click.option("--file", "file", type=click.Path(path_type=Path), help="Texts, one a line; - is standard input.")
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="Image to show before each text; again for more. What asks of it may be left out where captions were learned.",
)
@click.option("--system", default="", help="What the model is told before.")
@click.option("--source-lang", metavar="CODE", help="Language of the text, for a run of translations.")
@click.option("--target-lang", metavar="CODE", help="Language to translate into, for a run of translations.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Tokens at most.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 takes the likeliest token."
)
@click.option(
    "--top-p",
    type=click.FloatRange(min=0, min_open=True, max=1),
    default=1.0,
    show_default=True,
    help="Draw from the likeliest tokens of this probability.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of what is drawn.")
@click.option("--raw", is_flag=True, help="Give the text as it is, without a turn around it.")
@options.json_output
def generate(
    model: str,
    texts: tuple[str, ...],
    checkpoint: str | None,
    file: Path | None,
    images: tuple[Path, ...],
    system: str,
    source_lang: str | None,
    target_lang: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    raw: bool,
    as_json: bool,
) -> int:
    """Ask a run, or a folder with a model; texts are put as the recipe puts them, and answers printed as they come.

    \b
    hpcgemma generate gemma2_9b_lora-3 '<svg viewBox="0 0 9 9"><circle r="4"/></svg>'
    hpcgemma generate gemma3_27b_sft-1 --target-lang hau 'Good morning' --checkpoint 200
    hpcgemma generate gemma3_4b_cpt-1 --raw --file beginnings.txt
    hpcgemma generate gemma3_4b_vlm-1 --image photo.jpg 'What is on the table?'
    """
    from hpcgemma.cli import choosing_model, trainer_process
    from hpcgemma.errors import InputError

    if raw and system:
        raise InputError("--raw gives the text as it is, and --system would be lost", "drop one of the two")
    if raw and images:
        raise InputError("--raw gives the text as it is, and --image would be lost", "drop one of the two")
    chosen = choosing_model.require_model(model, checkpoint)
    asked = _texts(texts, file) if texts or file or not images else []
    if images and not asked:
        asked = [""]  # the recipe's own instruction
    elif not asked or not all(text.strip() for text in asked):
        raise InputError("there is no text to answer, or an empty one", f"hpcgemma generate {model} 'Hello'")
    return trainer_process.run_program(
        "generate",
        chosen
        | {
            "texts": asked,
            "images": [str(image.absolute()) for image in images],
            "system": system,
            "source_lang": source_lang,
            "target_lang": target_lang,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "raw": raw,
            "as_json": as_json,
        },
    )


def _texts(given: tuple[str, ...], file: Path | None) -> list[str]:
    """Return the texts of the arguments, then of a file, one a line; without both, standard input is one text."""
    import sys

    from hpcgemma.errors import InputError

    texts = list(given)
    if file is None:
        if not texts and not sys.stdin.isatty():
            texts = [sys.stdin.read().strip()]
        return [text for text in texts if text] if len(texts) > 1 else texts
    try:
        content = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--file {file} cannot be read: {error}", "one text a line, in UTF-8") from None
    return texts + [line for line in content.splitlines() if line.strip()]
