"""Tokenize a run's data once, before any rank starts: ``python -m hpcgemma.train.prepare RUN_FOLDER``.

One process does it, without a process group: no rank waits in a collective, no rank does it twice, and no time limit
of a collective is at risk. Nothing here imports torch; transformers does, where it loads a model's own tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hpcgemma import files
from hpcgemma.checkpoints import find_checkpoints
from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.recipes.types import Recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.data.order import epoch_order
from hpcgemma.train.data.prepared import REFERENCES_NAME, SUMMARY_NAME, TOKENIZER_NAME, TokenRows
from hpcgemma.train.data.prompts import SpecialIds, TokenizedRow
from hpcgemma.train.data.rows import Conversation, conversation_of, read_conversations
from hpcgemma.train.data.svg_captions import Drawing, draw_rows
from hpcgemma.train.data.tokenizer import copy_tokenizer, train_tokenizer
from hpcgemma.train.data.turn_format import turn_format
from hpcgemma.train.failures import DataError, attempt_number, failure_of, write_failure
from hpcgemma.train.runfile import read_run

FORMAT = 1
"""Version of the prepared folder."""

ROWS_AT_ONCE = 1024
"""Rows tokenized in one call, which spreads them over the cores."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where conversations come from: each call reads them anew, line by line."""

    train: Callable[[], Iterator[Conversation]]
    eval: Callable[[], Iterator[Conversation]]


def prepare(folder: RunFolder) -> dict[str, Any]:
    """Make the prepared folder of a run, unless it is there for the same data and settings.

    Returns:
        Its summary.

    Raises:
        InputError: The data or the settings cannot be trained on, or the data changed since the run began.
    """
    _, recipe = read_run(folder)
    wanted = settings_of(recipe)
    sources = _data_files(recipe)
    present = _present_summary(folder.prepared_dir)
    if present and present["settings"] == wanted and not any(path.exists() for path in sources):
        return present  # the tokens are here; the files they came from are no longer needed
    fingerprint = _hash_of(wanted, sources)
    if present:
        if present["fingerprint"] == fingerprint:
            return present
        if find_checkpoints(folder.checkpoints_dir):
            raise InputError(
                f"the data or its settings changed since this run began ({', '.join(map(str, sources)) or 'recipe'})",
                "restore them to resume, or start a new run: hpcgemma submit",
            )
    for leftover in folder.path.glob(".preparing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if folder.prepared_dir.exists():
        outdated = folder.path / f".preparing-outdated-{os.getpid()}"
        folder.prepared_dir.rename(outdated)
        shutil.rmtree(outdated)
    staging = folder.path / f".preparing-{os.getpid()}"
    files.make_private_dir(staging)
    summary = {"format": FORMAT, "fingerprint": fingerprint, "settings": wanted} | _fill(staging, recipe)
    summary["files"] = _sizes(staging)
    (staging / SUMMARY_NAME).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for path in sorted(staging.rglob("*")):
        files.fsync_path(path)
    files.fsync_path(staging)
    staging.rename(folder.prepared_dir)
    files.fsync_path(folder.path)
    return summary


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return what of a recipe decides the tokens."""
    data = recipe.data.model_dump(mode="json", exclude={"num_workers", "pin_memory"})
    return {
        "format": FORMAT,
        "data": data,
        "tokenizer": recipe.tokenizer.model_dump(mode="json"),
        "model_path": recipe.model.path if recipe.tokenizer.path is None else None,
        "revision": recipe.model.revision,
        "eval_seed": recipe.training.seed if recipe.data.eval is None else None,
    }


def _fill(staging: Path, recipe: Recipe) -> dict[str, Any]:
    """Write tokenizer and tokens into the staged folder and return what there is to say of them."""
    began = time.monotonic()
    source = _source(recipe)
    tokenizer_dir = staging / TOKENIZER_NAME
    path = recipe.tokenizer.path or recipe.model.path
    if recipe.tokenizer.train_vocab_size is not None:
        train_tokenizer(source.train(), recipe.tokenizer.train_vocab_size, tokenizer_dir)
    elif path is not None:
        revision = recipe.model.revision if recipe.tokenizer.path is None else None
        copy_tokenizer(path, revision, tokenizer_dir)
    else:
        raise InputError(
            "the recipe has no tokenizer: model.path, tokenizer.path and tokenizer.train_vocab_size are null",
            "--set tokenizer.train_vocab_size=512, or --set tokenizer.path=FOLDER",
        )
    turns = turn_format(tokenizer_dir, path or "the rows")

    def rows(conversations: Iterable[Conversation]) -> Iterator[tuple[Conversation, TokenizedRow]]:
        stream = iter(conversations)
        while chunk := list(islice(stream, ROWS_AT_ONCE)):
            yield from zip(chunk, turns.tokenize(chunk), strict=True)

    limit = recipe.data.max_length
    train, train_left_out = _keep(rows(source.train()), limit, lambda _: None)
    with (staging / REFERENCES_NAME).open("w", encoding="utf-8") as file:

        def write_reference(conversation: Conversation) -> None:
            row = {
                "prompt": [asdict(turn) for turn in conversation.folded[:-1]],
                "answer": conversation.answer.strip(),
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

        held_out, eval_left_out = _keep(rows(source.eval()), limit, write_reference)
    for name, kept, left_out in (("training", train, train_left_out), ("held-out", held_out, eval_left_out)):
        if not len(kept):
            raise DataError(
                f"none of the {left_out} {name} rows has at most data.max_length = {limit} tokens",
                "--set data.max_length to a larger number" if left_out else "--set data.eval_share=0.2",
            )
    train.save(staging, "train")
    held_out.save(staging, "eval")
    return {
        "vocab_size": turns.tokenizer.get_vocab_size(with_added_tokens=True),
        "special_ids": _ids_of(turns.special),
        "train": _counts(train, train_left_out),
        "eval": _counts(held_out, eval_left_out),
        "max_length": limit,
        "seconds": round(time.monotonic() - began, 2),
    }


def _keep(
    rows: Iterable[tuple[Conversation, TokenizedRow]], limit: int, note: Callable[[Conversation], None]
) -> tuple[TokenRows, int]:
    """Return the rows of at most ``limit`` tokens, and how many were longer; ``note`` is told of each kept one."""
    left_out = 0

    def kept() -> Iterator[TokenizedRow]:
        nonlocal left_out
        for conversation, row in rows:
            if len(row.ids) > limit:
                left_out += 1
            else:
                note(conversation)
                yield row

    return TokenRows.of(kept()), left_out


def _source(recipe: Recipe) -> Source:
    data = recipe.data
    if data.generator is not None:
        spec = data.generator
        train, held_out = draw_rows(spec.train_rows, spec.eval_rows, spec.seed)

        def conversations(drawings: Sequence[Drawing]) -> Iterator[Conversation]:
            return (conversation_of({"svg": each.svg, "caption": each.caption}, data) for each in drawings)

        return Source(lambda: conversations(train), lambda: conversations(held_out))
    if data.train is None:
        raise InputError("the recipe has no rows: data.train and data.generator are null", "--set data.train=FILE")
    train_file = Path(data.train)
    if data.eval is not None:
        eval_file = Path(data.eval)
        return Source(lambda: read_conversations(train_file, data), lambda: read_conversations(eval_file, data))
    count = sum(1 for _ in read_conversations(train_file, data))
    if count < 2:
        raise DataError(
            f"{train_file} holds one row, so none is left to be held out", "--set data.eval=FILE, or give more rows"
        )
    held_out_count = min(max(1, round(data.eval_share * count)), count - 1)
    is_held_out = np.zeros(count, np.bool_)
    is_held_out[epoch_order(count, recipe.training.seed, 0)[:held_out_count]] = True

    def share(wanted: bool) -> Iterator[Conversation]:
        rows = read_conversations(train_file, data)
        return (row for row, held in zip(rows, is_held_out, strict=True) if held == wanted)

    return Source(lambda: share(False), lambda: share(True))


def _data_files(recipe: Recipe) -> list[Path]:
    if recipe.data.generator is not None:
        return []
    return [Path(name) for name in (recipe.data.train, recipe.data.eval) if name is not None]


def _hash_of(settings: dict[str, Any], sources: Sequence[Path]) -> str:
    contents = []
    for path in sources:
        try:
            contents.append({"bytes": path.stat().st_size, "sha256": files.sha256_of(path)})
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror}",
                "--set data.train=FILE (and data.eval), as an absolute path that the compute nodes see",
            ) from None
    text = json.dumps([settings, contents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _present_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a prepared folder; None where it, or a file, is missing or cut short."""
    try:
        summary: dict[str, Any] = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if summary.get("files") == _sizes(folder) else None


def _sizes(folder: Path) -> dict[str, int]:
    """Return the bytes of each file of a prepared folder, but for its summary."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMMARY_NAME)
    return {str(path.relative_to(folder)): path.stat().st_size for path in paths}


def _counts(rows: TokenRows, left_out: int) -> dict[str, int]:
    return {
        "rows": len(rows),
        "tokens": len(rows.ids_L),
        "target_tokens": int(rows.targets_N.sum()),
        "longest_row_tokens": int(rows.lengths_N.max()),
        "left_out_rows": left_out,
    }


def _ids_of(special: SpecialIds) -> dict[str, int]:
    return {name: number for name, number in asdict(special).items() if number is not None}


def main(arguments: Sequence[str]) -> int:
    """Prepare the run folder named on the command line and return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m hpcgemma.train.prepare RUN_FOLDER", file=sys.stderr)
        return 2
    folder = RunFolder(Path(arguments[0]).resolve())
    try:
        summary = prepare(folder)
    except Exception as error:  # noqa: BLE001 - whatever ends this process must reach the supervisor
        failure = failure_of(error)
        if not failure.is_expected:
            traceback.print_exc()
        print(f"Error: {failure.sentence}\nTry:   {failure.hint}", file=sys.stderr, flush=True)
        write_failure(folder, attempt_number(), failure, rank=0, step=0)
        return error.exit_code if isinstance(error, HpcGemmaError) else 1
    train, held_out = summary["train"], summary["eval"]
    print(
        f"data: {train['rows']} training rows of {train['tokens']} tokens ({train['target_tokens']} learned, "
        f"longest row {train['longest_row_tokens']}, {train['left_out_rows']} longer than {summary['max_length']} "
        f"left out); {held_out['rows']} held-out rows of {held_out['tokens']} tokens; "
        f"vocabulary {summary['vocab_size']}; tokenized in {summary['seconds']} s"
    )
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main(sys.argv[1:]))
