"""`hpcgemma data`: a recipe's data prepared, shown, or counted, without a run. Without torch."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import Recipe
from hpcgemma.rows.bad_rows import BadRow
from hpcgemma.rows.files import Chunk, parse_chunk
from hpcgemma.train.commands import program
from hpcgemma.train.data.fingerprint import fingerprint_of
from hpcgemma.train.data.packing import best_fit
from hpcgemma.train.data.prompts import IMAGE_TOKENS
from hpcgemma.train.data.sources import Sources, open_sources
from hpcgemma.train.data.summary import describe, read_summary
from hpcgemma.train.data.token_rows import TokenRows
from hpcgemma.train.data.tokenizing import RowTokenizer
from hpcgemma.train.data.turn_format import turn_format
from hpcgemma.train.data.unwinding import unwinds_at_sigterm
from hpcgemma.train.prepare import prepare_shared, tokenizer_of

NO_LIMIT = 1 << 40
"""Tokens of a row at most, where rows are only counted."""

_REPEATED_IMAGE_TOKEN = re.compile(f"({re.escape(IMAGE_TOKENS[1])})+")
_LEARNED, _PLAIN = "\033[1;32m", "\033[0m"


def main(request: dict[str, Any]) -> int:
    """Do what is asked: ``what`` is prepare, preview or stats."""
    recipe = Recipe.model_validate(request["recipe"])
    if request["what"] == "prepare":
        return _prepare(recipe, Path(request["runs_dir"]), as_json=request["as_json"])
    if request["what"] == "preview":
        return _preview(recipe, request["rows"])
    return _stats(recipe, request["max_length"], as_json=request["as_json"])


def _prepare(recipe: Recipe, runs_dir: Path, *, as_json: bool) -> int:
    try:
        with unwinds_at_sigterm():
            folder = prepare_shared(runs_dir, recipe, fingerprint_of(recipe))
    except KeyboardInterrupt:
        program.note("\ninterrupted: nothing half-made is left, and the same command begins anew")
        raise
    summary = read_summary(folder)
    if as_json:
        print(json.dumps({"folder": str(folder)} | summary, indent=1))
        return 0
    print("\n".join(describe(summary)))
    print(f"prepared in {folder}; runs with the same data and settings start from it")
    return 0


def _preview(recipe: Recipe, rows: int) -> int:
    sources = open_sources(recipe)
    print("\n".join(sources.described()))
    with tempfile.TemporaryDirectory(prefix="hpcgemma-") as scratch:
        tokenizer_dir = tokenizer_of(recipe, sources, Path(scratch))
        turns = turn_format(tokenizer_dir, recipe.tokenizer.path or recipe.model.path or "the rows")
        tokenizer = RowTokenizer(sources.spec, turns, sources.files, holds_out_share=False)
        for file, row in islice(_rows(sources), rows):
            done = tokenizer.tokenize([row], file)
            name = Path(sources.files[file].path).name
            for _, bad in done.bad:
                print(f"\n--- {name}, line {bad.line}: left out, {bad.reason}: {bad.detail}")
            for each in done.index_N:
                span = slice(each["start"], each["start"] + each["length"])
                print(f"\n--- {name}, line {row.line}: {each['length']} tokens, {each['targets']} learned")
                text = marked(turns.tokenizer, done.ids_L[span], done.is_target_L[span], colour=sys.stdout.isatty())
                print(_REPEATED_IMAGE_TOKEN.sub(_counted, text))
    return 0


def _counted(run: re.Match[str]) -> str:
    return f"{run[1]} x {len(run[0]) // len(run[1])}"


def marked(tokenizer: Tokenizer, ids_T: NDArray[np.int32], is_target_T: NDArray[np.bool_], *, colour: bool) -> str:
    """Return a row's text with what is learned marked: in green on a terminal, else between « and »."""
    begin, end = (_LEARNED, _PLAIN) if colour else ("«", "»")
    pieces = []
    for is_learned, group in groupby(zip(ids_T.tolist(), is_target_T.tolist(), strict=True), key=lambda pair: pair[1]):
        text = tokenizer.decode([number for number, _ in group], skip_special_tokens=False)
        pieces.append(f"{begin}{text}{end}" if is_learned else text)
    return "".join(pieces)


def _rows(sources: Sources) -> Iterator[tuple[int, Any]]:
    for file, piece in sources.pieces():
        for row in parse_chunk(piece) if isinstance(piece, Chunk) else piece:
            if not isinstance(row, BadRow) or row.reason != "duplicate":
                yield file, row


def _stats(recipe: Recipe, max_length: int | None, *, as_json: bool) -> int:
    limit = max_length or recipe.data.max_length
    data = recipe.data.model_copy(update={"max_length": NO_LIMIT, "max_bad_share": 1.0, "packing": False})
    evaluation = recipe.evaluation.model_copy(update={"generation": None})
    whole = recipe.model_copy(update={"data": data, "evaluation": evaluation})
    with tempfile.TemporaryDirectory(prefix="hpcgemma-") as scratch:
        folder = prepare_shared(Path(scratch), whole, fingerprint_of(whole))
        summary = read_summary(folder)
        found = statistics(TokenRows.open(folder, "train").lengths_N, limit)
    found |= {"held_out_rows": summary["eval"]["rows"], "left_out": summary["left_out"]}
    if as_json:
        print(json.dumps(found, indent=1))
        return 0
    print("\n".join([*summary["detected"], *_described(found)]))
    return 0


def statistics(lengths_N: NDArray[np.int64], limit: int) -> dict[str, Any]:
    """Return what the lengths of rows say.

    Args:
        lengths_N: Tokens of each training row.
        limit: The length at most that is thought of.

    Returns:
        ``rows``, ``tokens``, quantiles of the length, ``histogram`` (rows by the power of two that holds them),
        ``longer_rows`` and ``lost_tokens`` at the limit, ``suggested_max_length`` (the 99th percentile, rounded up to
        a multiple of 64), and ``packed_density`` of what fits at the limit.
    """
    if not len(lengths_N):
        raise InputError("no row is left to be counted", "hpcgemma data preview shows what is wrong")
    lengths_N = np.asarray(lengths_N)
    upper = 1 << np.ceil(np.log2(np.maximum(lengths_N, 1))).astype(np.int64)
    fitting = np.minimum(lengths_N, limit)
    sizes, counts = np.unique(upper, return_counts=True)
    quantiles = np.quantile(lengths_N, (0.5, 0.9, 0.99), method="higher").astype(int).tolist()
    packs = best_fit(fitting, limit)
    return {
        "rows": len(lengths_N),
        "tokens": int(lengths_N.sum()),
        "median": quantiles[0],
        "p90": quantiles[1],
        "p99": quantiles[2],
        "longest": int(lengths_N.max()),
        "histogram": {int(size): int(count) for size, count in zip(sizes, counts, strict=True)},
        "max_length": limit,
        "longer_rows": int((lengths_N > limit).sum()),
        "lost_tokens": int((lengths_N - fitting).sum()),
        "suggested_max_length": -(-quantiles[2] // 64) * 64,
        "packed_density": round(float(fitting.sum()) / (len(packs) * limit), 4),
    }


def _described(found: dict[str, Any]) -> list[str]:
    most = max(found["histogram"].values())
    lines = [
        f"{found['rows']:,} training rows of {found['tokens']:,} tokens; {found['held_out_rows']:,} held-out rows",
        f"tokens a row: median {found['median']}, p90 {found['p90']}, p99 {found['p99']}, longest {found['longest']}",
    ]
    for size, count in found["histogram"].items():
        lines.append(f"  up to {size:>7,}: {count:>9,} {'#' * max(1, round(40 * count / most))}")
    lines += [
        f"at max_length {found['max_length']}: {found['longer_rows']:,} rows are longer "
        f"({found['longer_rows'] / found['rows']:.1%}), {found['lost_tokens']:,} tokens beyond it; packed, "
        f"{found['packed_density']:.1%} of each pack is filled",
        f"suggested: --set data.max_length={found['suggested_max_length']}  (holds 99 % of the rows whole)",
    ]
    if found["left_out"]:
        lines.append("left out: " + ", ".join(f"{count} {reason}" for reason, count in found["left_out"].items()))
    return lines


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # one process with all cores, where data are few
    program.run(main)
