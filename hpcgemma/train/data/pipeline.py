"""All rows of a training turned into token ids, in one pass over the files, by all cores, in flat memory.

A worker process reads and tokenizes a chunk of a file; this process writes what comes back, in the order of the files,
so that the result does not depend on the number of workers. Only then is decided which rows are left out as copies of
others, and which are held out: both follow from the rows' content alone, so that neither changes when rows are added
or files are renamed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any

from hpcgemma.errors import HpcGemmaError
from hpcgemma.recipes.types import DataSpec
from hpcgemma.rows.bad_rows import BadRow
from hpcgemma.rows.files import Chunk, parse_chunk
from hpcgemma.rows.records import Record
from hpcgemma.train.data.bad_row_report import BadRowReport
from hpcgemma.train.data.images import ENDS_NAME, IMAGES_NAME, SHOWN_NAME, ImageWriter
from hpcgemma.train.data.prepared import REFERENCES_NAME
from hpcgemma.train.data.selection import RowIndex, Selection, select_rows
from hpcgemma.train.data.token_rows import TokenWriter
from hpcgemma.train.data.tokenizing import RowTokenizer, SourceFile, Tokenized
from hpcgemma.train.data.turn_format import turn_format
from hpcgemma.train.signals import stacks_signals, write_stacks_on

INDEX_NAME = "index.bin"
CANDIDATES_NAME = "candidates.tsv"
WORKERS_FROM_BYTES = 4 << 20
"""Below this, starting processes takes longer than they save."""
WORKERS_FROM_BYTES_OF_IMAGE_ROWS = 64 << 10
"""The same for rows with images, which take longer than their bytes say: they only name files to be decoded."""

_PR_SET_PDEATHSIG = 1

Piece = tuple[int, Chunk | Sequence[Record]]
"""Some rows of a file: which file, and the rows or where they are."""


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
            except BrokenProcessPool:
                raise HpcGemmaError(
                    "a process that tokenizes was killed, as happens where memory runs out",
                    "ask for more memory, or for fewer cores: each has a process",
                ) from None
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
    write_stacks_on(stacks_signals(os.environ))
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
) -> Selection:
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
        candidates.open("x", encoding="utf-8") as lines,
    ):
        for done in workers.run(pieces):
            done.index_N["start"] += writer.tokens
            done.index_N["image_start"] += images.shown
            writer.append(done.ids_L, done.is_target_L)
            images.append(done.images)
            index.write(done.index_N.tobytes())
            lines.writelines(f"{rows + place}\t{text}\n" for place, text in sorted(done.references.items()))
            rows += len(done.index_N)
            counts.update(truncated_rows=done.truncated, further_pieces=done.pieces)
            for file, bad in done.bad:
                report.add(files[file].path, bad)
            on_progress(rows, writer.tokens)
    shows_images = image_token is not None and len(images) > 0
    if shows_images:
        counts["images"] = len(images)
    else:
        for name in (IMAGES_NAME, ENDS_NAME, SHOWN_NAME):
            (staging / name).unlink()
    with References(candidates, staging / REFERENCES_NAME) as references:
        selection = select_rows(
            RowIndex(index_file),
            files,
            spec,
            staging,
            report,
            references.keep,
            holds_out_share=holds_out_share,
            shows_images=shows_images,
        )
    index_file.unlink()
    candidates.unlink()
    return dataclasses.replace(selection, counts=selection.counts | counts)


class References:
    """What held-out rows ask and answer: the lines of the rows that are held out, of those that might have been.

    Args:
        candidates: A line for each row that might be, in their order: its number, a tab, the text.
        target: Gets the texts.
    """

    def __init__(self, candidates: Path, target: Path) -> None:
        self._candidates = candidates.open(encoding="utf-8")
        self._kept = target.open("x", encoding="utf-8")

    def keep(self, rows: Sequence[int]) -> None:
        """Write the texts of rows, which come after those of the calls before."""
        wanted = iter(rows)
        row = next(wanted, None)
        while row is not None:
            number, _, text = self._candidates.readline().partition("\t")
            if int(number) == row:
                self._kept.write(text)
                row = next(wanted, None)

    def __enter__(self) -> References:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._candidates.close()
        self._kept.close()


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
