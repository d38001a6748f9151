"""All rows of a training turned into token ids, in one pass over the files, by all cores, in flat memory.

A worker process reads and tokenizes a chunk of a file; this process writes what comes back, in the order of the files,
so that the result does not depend on the number of workers. Only then is decided which rows are left out as copies of
others, and which are held out: both follow from the rows' content alone, so that neither changes when rows are added
or files are renamed.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcgemma.recipes.types import DataSpec
from hpcgemma.rows.bad_rows import BadRow
from hpcgemma.rows.files import Chunk, parse_chunk
from hpcgemma.rows.records import Record
from hpcgemma.train.data.bad_row_report import BadRowReport
from hpcgemma.train.data.images import ENDS_NAME, IMAGES_NAME, SHOWN_NAME, Images, ImageWriter, RowImages
from hpcgemma.train.data.prepared import REFERENCES_NAME, TOKENIZER_NAME
from hpcgemma.train.data.token_rows import TokenRows, TokenWriter, open_tokens
from hpcgemma.train.data.tokenizing import HELD_OUT, INDEX, RowTokenizer, SourceFile, Tokenized, held_out_limit
from hpcgemma.train.data.turn_format import turn_format

INDEX_NAME = "index.bin"
CANDIDATES_NAME = "candidates.tsv"
WORKERS_FROM_BYTES = 4 << 20
"""Below this, starting processes takes longer than they save."""
WORKERS_FROM_BYTES_OF_IMAGE_ROWS = 64 << 10
"""The same for rows with images, which take longer than their bytes say: they only name files to be decoded."""

_DIGESTS_AT_ONCE = 1 << 22
_PR_SET_PDEATHSIG = 1

Piece = tuple[int, Chunk | Sequence[Record]]
"""Some rows of a file: which file, and the rows or where they are."""


@dataclass(frozen=True, slots=True)
class TokenizedSets:
    """What ``tokenize_all`` made."""

    train: TokenRows
    """Training rows, those of each part of the mixture together, in the order of the parts."""
    parts: list[int]
    """Training rows of each part."""
    eval: TokenRows
    counts: dict[str, int]
    """Rows read, rows left out as duplicates, and so on."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the tokenizing is."""

    bytes_done: int
    bytes_total: int
    rows: int
    tokens: int
    seconds: float


class Workers:
    """Tokenizes pieces in so many processes, or in this one, and gives the results in order."""

    def __init__(
        self,
        spec: DataSpec,
        tokenizer_dir: Path,
        tokenizer_name: str,
        files: Sequence[SourceFile],
        *,
        holds_out_share: bool,
        processes: int,
    ) -> None:
        self._start = (spec, tokenizer_dir, tokenizer_name, files, holds_out_share)
        self._processes = processes

    def run(self, pieces: Iterable[Piece]) -> Iterator[Tokenized]:
        """Yield what became of each piece."""
        if self._processes <= 1:
            tokenizer = _row_tokenizer(*self._start)
            for file, piece in pieces:
                yield tokenizer.tokenize(_rows_of(piece), file)
            return
        with ProcessPoolExecutor(
            self._processes,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(os.getpid(), *self._start),
        ) as pool:
            waiting: deque[Future[Tokenized]] = deque()
            try:
                for file, piece in pieces:
                    waiting.append(pool.submit(_work, file, piece))
                    if len(waiting) > 2 * self._processes:  # what is read ahead stays small
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)


_tokenizer: RowTokenizer | None = None
"""A worker process's own."""


def _row_tokenizer(
    spec: DataSpec, tokenizer_dir: Path, name: str, files: Sequence[SourceFile], holds_out_share: bool
) -> RowTokenizer:
    return RowTokenizer(spec, turn_format(tokenizer_dir, name), files, holds_out_share=holds_out_share)


def _start_worker(parent: int, *arguments: Any) -> None:
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes share the cores already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    # A worker must not outlive a parent that was killed, as Slurm does.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    _tokenizer = _row_tokenizer(*arguments)


def _work(file: int, piece: Chunk | Sequence[Record]) -> Tokenized:
    assert _tokenizer is not None
    return _tokenizer.tokenize(_rows_of(piece), file)


def _rows_of(piece: Chunk | Sequence[Record]) -> Iterable[Record | BadRow]:
    return parse_chunk(piece) if isinstance(piece, Chunk) else piece


def tokenize_all(
    pieces: Iterable[Piece],
    workers: Workers,
    files: Sequence[SourceFile],
    spec: DataSpec,
    staging: Path,
    report: BadRowReport,
    *,
    holds_out_share: bool,
    image_token: int | None = None,
    on_progress: Callable[[int, int], None] = lambda rows, tokens: None,
) -> TokenizedSets:
    """Write the tokens of all pieces into a folder and return which rows are trained on and which are held out.

    What held-out rows ask and answer goes into the folder as JSON lines, in the order of those rows.

    Args:
        pieces: All rows, file by file.
        workers: What tokenizes them.
        files: The files they come from.
        spec: Which share is held out, whether copies are left out.
        staging: The folder.
        report: Told of every row that is left out.
        holds_out_share: Whether some of the training rows are held out.
        image_token: Stands for a piece of an image; None: no row shows one.
        on_progress: Told of rows and tokens so far.
    """
    counts: Counter[str] = Counter()
    rows = 0
    index_file, candidates = staging / INDEX_NAME, staging / CANDIDATES_NAME
    with (
        TokenWriter(staging) as writer,
        ImageWriter(staging) as images,
        index_file.open("xb") as index,
        candidates.open("x", encoding="utf-8") as references,
    ):
        for done in workers.run(pieces):
            done.index_N["start"] += writer.tokens
            done.index_N["image_start"] += images.shown
            writer.append(done.ids_L, done.is_target_L)
            images.append(done.images)
            index.write(done.index_N.tobytes())
            references.writelines(f"{rows + place}\t{text}\n" for place, text in sorted(done.references.items()))
            rows += len(done.index_N)
            counts.update(truncated_rows=done.truncated, further_pieces=done.pieces)
            for file, bad in done.bad:
                report.add(files[file].path, bad)
            on_progress(rows, writer.tokens)
    index_N = np.memmap(index_file, INDEX, "r") if rows else np.empty(0, INDEX)
    copy_of_N = first_copies(index_N) if spec.deduplicate else np.full(rows, -1, np.int64)
    is_held_out_N = _held_out(index_N, copy_of_N, spec.eval_share if holds_out_share else None)
    for row in np.flatnonzero(copy_of_N >= 0):
        first = index_N[copy_of_N[row]]
        place = f"{files[first['file']].path}, line {first['line']}"
        report.add(files[index_N[row]["file"]].path, BadRow(int(index_N[row]["line"]), "duplicate", f"as {place}"))
    kept_N = copy_of_N < 0
    held_out = np.flatnonzero(kept_N & is_held_out_N)
    trained = np.flatnonzero(kept_N & ~is_held_out_N)
    part_of = index_N["part"][trained]
    trained = trained[np.argsort(part_of, kind="stable")]
    number_of_parts = 1 + max((file.part for file in files), default=0)
    shown = _kept_images(staging, image_token)
    sets = TokenizedSets(
        train=_rows_in(staging, index_N, trained, shown),
        parts=[int(number) for number in np.bincount(part_of, minlength=number_of_parts)],
        eval=_rows_in(staging, index_N, held_out, shown),
        counts={
            "rows": rows,
            **({} if shown is None else {"images": len(shown)}),
            "duplicates": int((copy_of_N >= 0).sum()),
            "eval_rows_in_training": _shared(index_N, held_out, trained, "digest", "digest_low"),
            "eval_questions_in_training": _shared(index_N, held_out, trained, "question"),
            **counts,
        },
    )
    _keep_references(candidates, staging / REFERENCES_NAME, held_out)
    del index_N
    index_file.unlink()
    candidates.unlink()
    return sets


def _keep_references(candidates: Path, target: Path, held_out: NDArray[np.int64]) -> None:
    """Write the lines of the rows that are held out, of those that might have been; both are in order."""
    wanted = iter(held_out.tolist())
    row = next(wanted, None)
    with candidates.open(encoding="utf-8") as lines, target.open("x", encoding="utf-8") as kept:
        for line in lines:
            number, _, text = line.partition("\t")
            if row is not None and int(number) == row:
                kept.write(text)
                row = next(wanted, None)


def first_copies(index_N: NDArray[Any]) -> NDArray[np.int64]:
    """Return for each row the first row of the same content on the same side, or -1 where it is that row itself.

    Rows given as held out and rows given for training are two sides: copies between them are counted, not dropped.
    Digests are sorted some millions at a time, so that memory stays flat.
    """
    copy_of_N = np.full(len(index_N), -1, np.int64)
    groups = 1 + len(index_N) // _DIGESTS_AT_ONCE
    group_of_N = index_N["digest"] % np.uint64(groups)
    for group in range(groups):
        rows = np.flatnonzero(group_of_N == group)
        some = index_N[rows]
        side = some["part"] == HELD_OUT
        order = np.lexsort((rows, side, some["digest_low"], some["digest"]))
        ordered, sides = some[order], side[order]
        same = np.zeros(len(rows), np.bool_)
        same[1:] = (
            (ordered["digest"][1:] == ordered["digest"][:-1])
            & (ordered["digest_low"][1:] == ordered["digest_low"][:-1])
            & (sides[1:] == sides[:-1])
        )
        first = np.maximum.accumulate(np.where(same, 0, np.arange(len(rows))))
        sorted_rows = rows[order]
        copy_of_N[sorted_rows[same]] = sorted_rows[first[same]]
    return copy_of_N


def _held_out(index_N: NDArray[Any], copy_of_N: NDArray[np.int64], share: float | None) -> NDArray[np.bool_]:
    """Return which rows are held out: by where they come from, or by their content."""
    if share is None or not len(index_N):
        held_out: NDArray[np.bool_] = index_N["part"] == HELD_OUT
        return held_out
    by_content: NDArray[np.bool_] = index_N["digest"] < np.uint64(held_out_limit(share))
    kept = np.flatnonzero(copy_of_N < 0)
    if not by_content[kept].any():
        by_content[kept[np.argmin(index_N["digest"][kept])]] = True
    elif by_content[kept].all() and len(kept) > 1:
        by_content[kept[np.argmax(index_N["digest"][kept])]] = False
    return by_content


def _rows_in(staging: Path, index_N: NDArray[Any], rows: NDArray[np.int64], images: Images | None) -> TokenRows:
    ids_L, is_target_L = open_tokens(staging)

    def column(name: str) -> NDArray[np.int64]:
        found: NDArray[np.int64] = index_N[name][rows].astype(np.int64)
        return found

    shown = None if images is None else RowImages(images, column("image_start"), column("images"))
    return TokenRows(ids_L, is_target_L, column("start"), column("length"), column("targets"), shown)


def _kept_images(staging: Path, image_token: int | None) -> Images | None:
    """Return the images that were written into a folder; where there are none, leave nothing of them there."""
    if image_token is not None and (staging / IMAGES_NAME).stat().st_size:
        return Images.open(staging, image_token, staging / TOKENIZER_NAME)
    for name in (IMAGES_NAME, ENDS_NAME, SHOWN_NAME):
        (staging / name).unlink()
    return None


def _shared(index_N: NDArray[Any], some: NDArray[np.int64], others: NDArray[np.int64], *fields: str) -> int:
    """Return how many of some rows have these fields in common with any of the others."""
    is_shared = np.ones(len(some), np.bool_)
    for name in fields:
        is_shared &= np.isin(index_N[name][some], index_N[name][others])
    return int(is_shared.sum())


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


class ProgressLine:
    """Says how far the tokenizing is: one line that moves on a terminal, a line now and then in a log.

    Args:
        bytes_total: Bytes of all files.
        every_s: Seconds between lines of a log.
    """

    def __init__(self, bytes_total: int, every_s: float = 15.0) -> None:
        self._total, self._every_s = max(1, bytes_total), every_s
        self._began = self._said = time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        self.bytes_done = 0

    def __call__(self, rows: int, tokens: int) -> None:
        """Say it, if it is time."""
        now = time.monotonic()
        if now - self._said < (0.2 if self._on_terminal else self._every_s):
            return
        self._said = now
        share = min(1.0, self.bytes_done / self._total)
        line = f"tokenizing: {share:4.0%}, {rows:,} rows, {tokens / (now - self._began):,.0f} tokens/s"
        print(f"\r{line}" if self._on_terminal else line, end="" if self._on_terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the line of a terminal."""
        if self._on_terminal and self._said != self._began:
            print(file=sys.stderr)
