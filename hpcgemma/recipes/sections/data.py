"""The data of a recipe, and how they become tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hpcgemma.configfile import Section


class GeneratorSpec(Section):
    """Rows that hpcgemma draws itself, the same on every machine."""

    name: Literal["svg_captions", "image_captions"] = "svg_captions"
    """Which generator: the same drawings as SVG, or as images for a model with a vision tower."""
    train_rows: int = Field(2048, gt=0)
    """Training rows to draw."""
    eval_rows: int = Field(256, gt=0)
    """Held-out rows to draw; none of them is among the training rows."""
    seed: int = 0
    """Seed of the drawings."""


RowFormat = Literal[
    "messages",
    "sharegpt",
    "alpaca",
    "dolly",
    "prompt_completion",
    "translation",
    "text",
    "svg_caption",
    "image_caption",
]


class MixturePart(Section):
    """Some of the training files, and how often their rows are seen."""

    path: str
    """File, or pattern of files such as data/*.jsonl."""
    weight: float = Field(1.0, gt=0)
    """How often an epoch passes over these rows: 2 takes each twice, 0.5 another half of them in each epoch."""


class LanguagesSpec(Section):
    """Languages of translations, as codes such as en, hau, de_DE or zh-Hant. A code names the text of a row, too."""

    source: str | None = None
    """Language to translate from; null: the row's field `source_field`, or the first of its two."""
    target: str | None = None
    """Language to translate into; null: the row's field `target_field`, or the second of its two."""
    source_field: str = "src_lang_code"
    """Field of a row with the code of its source language, where rows have one."""
    target_field: str = "tgt_lang_code"
    """Field of a row with the code of its target language, where rows have one."""


class DataSpec(Section):
    """Where the rows come from and how they become tokens."""

    train: str | list[str | MixturePart] | None = None
    """Files of training rows: one, a pattern such as data/*.jsonl, or a list of these, each with a weight if wanted;
    JSON lines, JSON, Parquet, CSV, TSV or text, also as .gz or .zst; relative to the folder of submission."""
    eval: str | list[str] | None = None
    """Files of held-out rows; null: a share of the training rows."""
    eval_share: float = Field(0.05, gt=0, lt=1)
    """Share of the training rows held out where `eval` is null; which ones depends on their content alone."""
    generator: GeneratorSpec | None = None
    """Rows drawn by hpcgemma; in place of `train` and `eval`."""
    format: Literal["auto"] | RowFormat = "auto"
    """What a row holds; auto looks at the first rows and says what it found, and why."""
    fields: dict[str, str] = {}
    """Names of the rows' own fields where they differ from those of the format, as in caption: name."""
    sample_by: Literal["line", "paragraph", "document"] = "line"
    """What of a text file is a row."""
    instruction: str | None = None
    """What the user turn of a caption's row asks; null: a sentence that fits the format."""
    prompt_template: str | None = None
    """The user turn, made of a row's fields: in Jinja, or with {field} for a field; null: the format's own."""
    languages: LanguagesSpec = LanguagesSpec()
    """Languages of translations."""
    learn: Literal["all", "last"] = "all"
    """Which answers of a conversation are learned: all of the assistant's turns, or the last."""
    max_length: int = Field(1024, gt=1)
    """Tokens per row, and of what rows are packed into."""
    too_long: Literal["auto", "skip", "truncate", "split"] = "auto"
    """What becomes of a longer row; split: a document is cut into pieces, a conversation between its exchanges;
    auto: split for text, skip for all else."""
    packing: bool = False
    """Lay rows one after the other until max_length is full, without one seeing another: no padding, more speed. A
    global_batch then counts what was packed."""
    deduplicate: bool = True
    """Leave out rows that are the same as an earlier one."""
    max_bad_share: float = Field(0.05, ge=0, le=1)
    """Share of rows that may be left out, duplicates apart; above it the data are refused."""
    num_workers: int = Field(0, ge=0)
    """Processes per rank that collate batches; 0 collates in the trainer itself."""
    pin_memory: bool = False
    """Collate into pinned host memory, which copies to a GPU faster."""


class TokenizerSpec(Section):
    """Which tokenizer: the model's own, or a small one trained from the rows."""

    path: str | None = None
    """Folder or hub name; null is that of the model."""
    train_vocab_size: int | None = Field(None, ge=300)
    """Train a byte-pair tokenizer with Gemma's special tokens to this size from the training rows."""
