"""The rows that a model is judged by, and the prompts that it is asked: tokens made as for the training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import DataSpec
from hpcgemma.rows.bad_rows import BadRowError
from hpcgemma.rows.conversation import Conversation, Document, Image, Turn
from hpcgemma.rows.conversion import DEFAULT_INSTRUCTIONS, Converter
from hpcgemma.rows.files import container_of, find_files, first_records, parse_chunk, read_chunks
from hpcgemma.rows.formats import detect
from hpcgemma.rows.images import with_images_read
from hpcgemma.rows.records import Record
from hpcgemma.train.data.images import Images, RowImages
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.prompts import TokenizedRow, TurnFormat
from hpcgemma.train.data.sources import LOOKED_AT
from hpcgemma.train.data.token_rows import TokenRows
from hpcgemma.train.data.tokenizing import HELD_OUT, RowTokenizer, SourceFile
from hpcgemma.train.failures import DataError
from hpcgemma.train.generation import Prompt

_PLACEHOLDER = "-"
"""Stands for the answer of a row that has none yet; it is cut off again."""

_QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "svg_caption": ("svg", {"caption": _PLACEHOLDER}),
    "translation": ("source_text", {"target_text": _PLACEHOLDER}),
    "alpaca": ("instruction", {"input": "", "output": _PLACEHOLDER}),
    "dolly": ("instruction", {"context": "", "response": _PLACEHOLDER}),
    "prompt_completion": ("prompt", {"completion": _PLACEHOLDER}),
}
"""For formats of single rows: the field that asks, and the others that a row of it has."""


@dataclass(frozen=True, slots=True)
class JudgedRows:
    """Rows with their true answers."""

    name: str
    """Where they come from."""
    rows: TokenRows
    questions: list[tuple[str, str]]
    """For each row what is asked, and the true answer."""
    left_out: int = 0
    """Rows that cannot be used."""


def held_out_rows(prepared: PreparedData) -> JudgedRows:
    """Return a run's own held-out rows."""
    return JudgedRows("the run's held-out rows", prepared.eval, prepared.questions())


def rows_to_judge(
    pattern: str, data: DataSpec, turns: TurnFormat, tokenizer_dir: Path, limit: int | None
) -> JudgedRows:
    """Return the rows of files, made into tokens as a recipe says.

    Args:
        pattern: A file, or a pattern of files.
        data: What rows hold and how they become tokens.
        turns: How conversations are written.
        tokenizer_dir: The tokenizer, and a vision model's processor.
        limit: At most so many rows, the first; None: all.

    Raises:
        InputError: There is no such file, or none of its rows can be used.
    """
    sources = []
    for path in find_files([pattern], "--data"):
        records = first_records([path], LOOKED_AT, data.sample_by)
        sources.append(SourceFile(str(path), HELD_OUT, detect(records, data, str(path))))
    tokenizer = RowTokenizer(data, turns, sources, holds_out_share=False)
    rows: list[TokenizedRow] = []
    images: list[tuple[Image, ...]] = []
    questions: list[tuple[str, str]] = []
    left_out = 0
    for number, source in enumerate(sources):
        path = Path(source.path)
        for chunk in read_chunks(path, container_of(path), sample_by=data.sample_by):
            if limit is not None and len(rows) >= limit:
                break
            done = tokenizer.tokenize(parse_chunk(chunk), number)
            left_out += len(done.bad)
            for place, entry in enumerate(done.index_N):
                tokens = slice(int(entry["start"]), int(entry["start"] + entry["length"]))
                rows.append(TokenizedRow(done.ids_L[tokens].tolist(), done.is_target_L[tokens].tolist()))
                first = int(entry["image_start"])
                images.append(tuple(done.images[first : first + int(entry["images"])]))
                reference = json.loads(done.references[place])
                asked = "\n".join(turn["text"] for turn in reference["prompt"])
                questions.append((asked, reference["answer"]))
    if not rows:
        raise InputError(
            f"--data {pattern}: none of its {left_out} rows can be used", "hpcgemma data preview  says why"
        )
    shown = shown_images(images[:limit], turns, tokenizer_dir)
    return JudgedRows(pattern, TokenRows.of(rows[:limit], shown), questions[:limit], left_out)


def shown_images(images: Sequence[Sequence[Image]], turns: TurnFormat, tokenizer_dir: Path) -> RowImages | None:
    """Return the images of rows, kept in memory; None where no row shows one.

    Args:
        images: Those of each row.
        turns: How conversations are written.
        tokenizer_dir: Where the model's processor is.
    """
    flat = [image for each in images for image in each]
    if turns.special.image is None or not flat:
        return None
    counts_N = np.asarray([len(each) for each in images], np.int64)
    kept = Images.of(flat, turns.special.image, tokenizer_dir)
    return RowImages(kept, np.cumsum(counts_N) - counts_N, counts_N)


def prompts_of(
    texts: Sequence[str],
    turns: TurnFormat,
    data: DataSpec | None,
    row_format: str | None,
    system: str,
    images: Sequence[Path] = (),
    tokenizer_dir: Path = Path(),
) -> list[Prompt]:
    """Return texts as the model was trained to be asked.

    Args:
        texts: For a format of captions the drawing, of translations the text to translate; else what a user says. Of
            captions of images one may be empty: then the recipe's own instruction asks.
        turns: How conversations are written.
        data: The recipe's data section; None: the text alone is the user's turn.
        row_format: The format of the rows that it was trained on.
        system: What the model is told before; may be empty.
        images: Shown with each text, before it.
        tokenizer_dir: Where a vision model's processor is.

    Raises:
        InputError: A text cannot become a prompt, or an image cannot be shown.
    """
    if row_format == "image_caption":
        if not images:
            raise InputError("the model captions images, and there is none", "--image FILE")
        instruction = DEFAULT_INSTRUCTIONS["image_caption"] if data is None else data.instruction
        texts = [text.strip() or instruction or DEFAULT_INSTRUCTIONS["image_caption"] for text in texts]
    shown = _read_images(images, turns)
    contents: list[Conversation | Document] = []
    for text in texts:
        if not text.strip():
            raise InputError("a prompt is empty", "give a text, as in: hpcgemma generate RUN 'Hello'")
        content = _asking(text, data, row_format, system)
        if shown and isinstance(content, Conversation):
            asked, answer = content.turns
            content = Conversation((Turn("user", asked.text.strip(), shown), answer), content.system)
        contents.append(content)
    try:
        conversations = [each for each in contents if isinstance(each, Conversation)]
        if conversations:
            each_shows = shown_images([each.images for each in conversations], turns, tokenizer_dir)
            tokens = TokenRows.of(turns.tokenize(conversations), each_shows)
            return [Prompt.of(tokens, row) for row in range(len(tokens))]
    except (BadRowError, DataError) as error:
        raise InputError(f"a prompt cannot be written in the model's format: {error}", "say it otherwise") from None
    return raw_prompts([each.text for each in contents if isinstance(each, Document)], turns)


def raw_prompts(texts: Sequence[str], turns: TurnFormat) -> list[Prompt]:
    """Return texts as they are, without a turn around them, as continued pre-training has seen them."""
    bos = [] if turns.special.bos is None else [turns.special.bos]
    rows = TokenRows.of(
        TokenizedRow([*bos, *ids], [True] * (len(bos) + len(ids))) for ids in turns.tokenize_texts(texts)
    )
    if not all(rows.lengths_N):
        raise InputError("a prompt is empty", "give a text, as in: hpcgemma generate RUN 'Hello'")
    return [Prompt.whole(rows, row) for row in range(len(rows))]


def _read_images(paths: Sequence[Path], turns: TurnFormat) -> tuple[Image, ...]:
    if paths and turns.special.image is None:
        raise InputError("this model sees no images", "drop --image, or name a run of model.kind vision")
    asked = Conversation(
        (Turn("user", "", tuple(Image(path=str(path)) for path in paths)), Turn("model", _PLACEHOLDER))
    )
    try:
        read = with_images_read(asked)
    except BadRowError as error:
        raise InputError(f"--image: {error}", "an image such as PNG or JPEG") from None
    return read.images if isinstance(read, Conversation) else ()


def format_of(data: DataSpec, prepared: PreparedData) -> str:
    """Return the format of the rows that a run was trained on; of several, that of the first file."""
    if data.generator is not None:
        return data.generator.name.removesuffix("s")
    if data.format != "auto":
        return data.format
    formats: list[str] = prepared.summary.get("formats", [])
    return formats[0] if formats else "messages"


def _asking(text: str, data: DataSpec | None, row_format: str | None, system: str) -> Conversation | Document:
    """Return a text as the row that it would be, with a placeholder for the answer."""
    if row_format == "text":
        return Document(text)
    content: Conversation | Document = Conversation((Turn("user", text), Turn("model", _PLACEHOLDER)))
    if data is not None and row_format in _QUESTIONS:
        field, others = _QUESTIONS[row_format]
        plain = {field: text, **others}
        row = {data.fields.get(name, name): value for name, value in plain.items()}
        spec = data.model_copy(update={"format": row_format})
        try:
            content = Converter(detect([Record(1, row)], spec, "the text"), spec, Path())(row)
        except (BadRowError, InputError) as error:
            raise InputError(
                f"the text does not fit the recipe's rows ({row_format}): {error}",
                "--source-lang CODE --target-lang CODE" if row_format == "translation" else "--raw gives it as it is",
            ) from None
    if system and isinstance(content, Conversation):
        content = Conversation(content.turns, system)
    return content
