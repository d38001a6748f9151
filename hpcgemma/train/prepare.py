"""Tokenize a run's data once, before any rank starts: ``python -m hpcgemma.train.prepare RUN_FOLDER``.

One process decides and writes, without a process group: no rank waits in a collective, no rank does it twice, and no
time limit of a collective is at risk. Nothing here imports torch; transformers does, where it loads a model's own
tokenizer or processor. What is prepared goes into a cache beside the run folders, for all runs with the same data and
settings.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcgemma import files
from hpcgemma.changes import accepted
from hpcgemma.checkpoints import find_checkpoints
from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.recipes.types import Recipe
from hpcgemma.rows.images import check_pillow
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.data import cache
from hpcgemma.train.data.bad_row_report import REPORT_NAME, BadRowReport
from hpcgemma.train.data.fingerprint import FORMAT, content_hash, files_of, hash_of, image_files_hash, settings_of
from hpcgemma.train.data.packing import pack_parts
from hpcgemma.train.data.pipeline import (
    WORKERS_FROM_BYTES,
    WORKERS_FROM_BYTES_OF_IMAGE_ROWS,
    ProgressLine,
    Workers,
    cores,
    tokenize_all,
)
from hpcgemma.train.data.prepared import TOKENIZER_NAME
from hpcgemma.train.data.processor import write_processor
from hpcgemma.train.data.prompts import SpecialIds
from hpcgemma.train.data.selection import Selection
from hpcgemma.train.data.sources import DataFile, Sources, check_formats, open_sources
from hpcgemma.train.data.summary import SUMMARY_NAME, describe, file_sizes, present_summary, read_summary
from hpcgemma.train.data.token_rows import TokenRows
from hpcgemma.train.data.tokenizer import copy_tokenizer, train_tokenizer
from hpcgemma.train.data.turn_format import turn_format
from hpcgemma.train.data.unwinding import unwinds_at_sigterm
from hpcgemma.train.failures import DataError, attempt_number, failure_of, write_failure
from hpcgemma.train.heartbeat import Heartbeat
from hpcgemma.train.runfile import allowed_changes, read_run
from hpcgemma.train.signals import stacks_signals, write_stacks_on


def prepare(folder: RunFolder, heartbeat: Heartbeat | None = None) -> dict[str, Any]:
    """Make the prepared folder of a run, unless it is there for the same data and settings.

    Args:
        folder: The run folder.
        heartbeat: This process's sign of life, while it only waits.

    Returns:
        Its summary.

    Raises:
        InputError: The data or the settings cannot be trained on, or the data changed since the run began.
    """
    _, recipe = read_run(folder)
    wanted = settings_of(recipe)
    present = present_summary(folder.prepared_dir)
    if present and present["settings"] == wanted and not any(Path(path).exists() for path in present["data_files"]):
        return present  # the tokens are here; the files they came from are no longer needed
    sources = files_of(recipe)
    fingerprint = hash_of(wanted, sources)
    if present:
        if present["fingerprint"] == fingerprint:
            return present
        found = find_checkpoints(folder.checkpoints_dir)
        if found and "data" not in accepted(allowed_changes(folder), found[-1].step):
            changes = _changes(present, wanted, fingerprint, sources)
            raise InputError(
                f"the data or its settings changed since this run began ({changes})",
                f"restore them, or accept that the result changes: hpcgemma resume {folder.path.name} "
                "--allow-change data",
            )
        if found and recipe.tokenizer.train_vocab_size is not None:
            raise InputError(
                "the data changed since this run began, and its tokenizer was trained from them",
                "restore them to resume, or start a new run: hpcgemma submit",
            )
    for leftover in folder.path.glob(".preparing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if folder.prepared_dir.exists():
        outdated = folder.path / f".preparing-outdated-{os.getpid()}"
        folder.prepared_dir.rename(outdated)
        shutil.rmtree(outdated)
    on_wait = (lambda: heartbeat.beat("waiting")) if heartbeat else (lambda: None)
    shared = prepare_shared(folder.path.parent, recipe, fingerprint, report_to=folder.path, on_wait=on_wait)
    staging = folder.path / f".preparing-{os.getpid()}"
    cache.link_tree(shared, staging)
    staging.rename(folder.prepared_dir)
    files.fsync_path(folder.path)
    return read_summary(folder.prepared_dir)


def _changes(before: dict[str, Any], settings: dict[str, Any], fingerprint: str, sources: Sequence[DataFile]) -> str:
    """Return what of the data differs from what was prepared: the settings that do, or else the files' content."""
    old, new = before["settings"]["data"], settings["data"]
    fields = [f"data.{name}: {old.get(name)} -> {new.get(name)}" for name in sorted(new) if old.get(name) != new[name]]
    names = ", ".join(dict.fromkeys(str(source.path) for source in sources)) or "recipe"
    return "; ".join(fields) or f"{names}: {before['fingerprint'][:12]} -> {fingerprint[:12]}"


def prepare_shared(
    runs_dir: Path,
    recipe: Recipe,
    fingerprint: str,
    *,
    report_to: Path | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> Path:
    """Return the folder of a recipe's prepared data in the cache of a runs folder; make it where it is missing.

    Args:
        runs_dir: The folder of run folders.
        recipe: What is prepared.
        fingerprint: Hash of data and settings.
        report_to: Folder for the report on bad rows, where they are too many.
        on_wait: Called again and again while another job prepares the same data.
    """
    with tempfile.TemporaryDirectory(prefix="hpcgemma-") as scratch:
        sources = open_sources(recipe)
        check_formats(recipe, sources)
        if sources.shows_images:
            check_pillow()
        tokenizer = _own_tokenizer(recipe, sources, Path(scratch) / TOKENIZER_NAME)
        made_of = [fingerprint, content_hash(tokenizer), *([image_files_hash(sources)] if sources.shows_images else [])]
        key = hashlib.sha256(" ".join(made_of).encode()).hexdigest()[:32]

        def build(staging: Path) -> None:
            try:
                summary = {"format": FORMAT, "fingerprint": fingerprint, "settings": settings_of(recipe)}
                summary |= _fill(staging, recipe, sources, tokenizer)
            except DataError:
                if report_to is not None and (staging / REPORT_NAME).exists():
                    shutil.copyfile(staging / REPORT_NAME, report_to / REPORT_NAME)
                raise
            summary["files"] = file_sizes(staging)
            (staging / SUMMARY_NAME).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

        return cache.obtain(
            runs_dir / cache.CACHE_NAME,
            key,
            build,
            lambda folder: present_summary(folder) is not None,
            lambda sentence: print(sentence, file=sys.stderr, flush=True),
            on_wait,
        )


def tokenizer_of(recipe: Recipe, sources: Sources, folder: Path) -> Path:
    """Return the recipe's tokenizer as a new folder in another: the model's own, or one trained from the rows."""
    target = folder / TOKENIZER_NAME
    if _own_tokenizer(recipe, sources, target) is None:
        _train_tokenizer(recipe, sources, target)
    return target


def _own_tokenizer(recipe: Recipe, sources: Sources, folder: Path) -> Path | None:
    """Copy the model's own tokenizer into a new folder; None where one is trained from the rows."""
    if recipe.tokenizer.train_vocab_size is not None:
        return None
    path = recipe.tokenizer.path or recipe.model.path
    if path is None:
        raise InputError(
            "the recipe has no tokenizer: model.path, tokenizer.path and tokenizer.train_vocab_size are null",
            "--set tokenizer.train_vocab_size=512, or --set tokenizer.path=FOLDER",
        )
    copy_tokenizer(path, recipe.model.revision if recipe.tokenizer.path is None else None, folder)
    if sources.shows_images:
        write_processor(recipe, folder)
    return folder


def _train_tokenizer(recipe: Recipe, sources: Sources, folder: Path) -> None:
    size, shown = recipe.tokenizer.train_vocab_size or 0, sources.shows_images
    train_tokenizer(sources.training_contents(), size, folder, shows_images=shown)
    if shown:
        write_processor(recipe, folder)


def _fill(staging: Path, recipe: Recipe, sources: Sources, tokenizer: Path | None) -> dict[str, Any]:
    """Write tokenizer and tokens into the staged folder and return what there is to say of them."""
    began = time.monotonic()
    for sentence in sources.described():
        print(f"data: {sentence}", flush=True)
    tokenizer_dir = staging / TOKENIZER_NAME
    if tokenizer is None:
        _train_tokenizer(recipe, sources, tokenizer_dir)
    else:
        shutil.copytree(tokenizer, tokenizer_dir)
    name = recipe.tokenizer.path or recipe.model.path or "the rows"
    turns = turn_format(tokenizer_dir, name)
    with BadRowReport(staging / REPORT_NAME) as report:
        sets = _tokenize(staging, turns.special.image, sources, tokenizer_dir, name, report)
        report.check(sets.counts["rows"], recipe.data.max_bad_share)
    for kind, kept in (("training", sets.train), ("held-out", sets.eval)):
        if not kept.rows:
            raise DataError(
                f"no {kind} row is left of {sets.counts['rows'] + report.bad}"
                + (f" (left out: {report.described()})" if report.counts else ""),
                "give more rows, or with --set data.eval=FILE rows to be held out",
            )
    counts = {name: sets.counts[name] for name in sorted(sets.counts)}
    return {
        "vocab_size": turns.tokenizer.get_vocab_size(with_added_tokens=True),
        "special_ids": _ids_of(turns.special),
        "data_files": [] if sources.drawn else [file.path for file in sources.files],
        "detected": sources.described(),
        "formats": [file.layout.format for file in sources.files],
        "train": asdict(sets.train),
        "eval": asdict(sets.eval),
        "counts": counts,
        "left_out": dict(report.counts),
        "parts": _parts(staging, recipe, sources, sets),
        "max_length": recipe.data.max_length,
        "seconds": round(time.monotonic() - began, 2),
    }


def _tokenize(
    staging: Path, image_token: int | None, sources: Sources, tokenizer_dir: Path, name: str, report: BadRowReport
) -> Selection:
    size = 0 if sources.drawn else sum(Path(file.path).stat().st_size for file in sources.files)
    is_much = size >= (WORKERS_FROM_BYTES if image_token is None else WORKERS_FROM_BYTES_OF_IMAGE_ROWS)
    processes = cores() if is_much else 1
    progress = ProgressLine(size)

    def note_bytes(count: int) -> None:
        progress.bytes_done = count

    holds_out_share = sources.holds_out_share
    workers = Workers(
        sources.spec, tokenizer_dir, name, sources.files, holds_out_share=holds_out_share, processes=processes
    )
    try:
        return tokenize_all(
            sources.pieces(note_bytes),
            workers,
            sources.files,
            sources.spec,
            staging,
            report,
            holds_out_share=holds_out_share,
            image_token=image_token,
            on_progress=progress,
        )
    finally:
        progress.end()


def _parts(staging: Path, recipe: Recipe, sources: Sources, sets: Selection) -> list[dict[str, Any]]:
    """Return the parts of the mixture, counted in samples: rows, or what they are packed into."""
    ranges: list[tuple[int, int]] = []
    for count in sets.parts:
        ranges.append((sum(each for _, each in ranges), count))
    if recipe.data.packing:
        packs, ranges = pack_parts(TokenRows.open(staging, "train").lengths_N, ranges, recipe.data.max_length)
        packs.save(staging, "train")
    weighted = zip(ranges, sources.weights, strict=True)
    return [{"first": first, "count": count, "weight": weight} for (first, count), weight in weighted if count]


def _ids_of(special: SpecialIds) -> dict[str, int]:
    return {name: number for name, number in asdict(special).items() if number is not None}


def main(arguments: Sequence[str]) -> int:
    """Prepare the run folder named on the command line and return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m hpcgemma.train.prepare RUN_FOLDER", file=sys.stderr)
        return 2
    folder = RunFolder(Path(arguments[0]).resolve())
    write_stacks_on(stacks_signals(os.environ))
    heartbeat = Heartbeat(folder.prepare_heartbeat_file)
    heartbeat.beat("preparing")
    try:
        with unwinds_at_sigterm():
            summary = prepare(folder, heartbeat)
    except Exception as error:  # noqa: BLE001 - whatever ends this process must reach the supervisor
        failure = failure_of(error)
        if not failure.is_expected:
            traceback.print_exc()
        print(f"Error: {failure.sentence}\nTry:   {failure.hint}", file=sys.stderr, flush=True)
        write_failure(folder, attempt_number(), failure, rank=0, step=0)
        return error.exit_code if isinstance(error, HpcGemmaError) else 1
    for sentence in describe(summary):
        print(sentence)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main(sys.argv[1:]))
