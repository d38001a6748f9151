"""What a worker process makes of some rows: token ids, what is learned of them, and what is wrong with the others.

Letters: N rows, L tokens of all rows together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcgemma.recipes.types import DataSpec
from hpcgemma.rows.bad_rows import BadRow, BadRowError
from hpcgemma.rows.conversation import Content, Conversation, Document, Image
from hpcgemma.rows.conversion import Converter
from hpcgemma.rows.formats import Layout
from hpcgemma.rows.images import with_images_read
from hpcgemma.rows.records import Record
from hpcgemma.train.data.prompts import TokenizedRow, TurnFormat
from hpcgemma.train.failures import DataError

ROWS_AT_ONCE = 1024
"""Rows tokenized in one call, which spreads them over the cores where there is one process."""

HELD_OUT = -1
"""Part of rows that are held out, whatever their content."""

INDEX = np.dtype(
    [
        ("start", np.int64),  # where its tokens begin
        ("length", np.int64),  # tokens
        ("targets", np.int64),  # tokens that are learned
        ("part", np.int64),  # of the mixture; HELD_OUT
        ("file", np.int64),
        ("line", np.int64),
        ("image_start", np.int64),  # where the images that it shows begin
        ("images", np.int64),  # how many it shows
        ("digest", np.uint64),  # of its content, high and low half
        ("digest_low", np.uint64),
        ("question", np.uint64),  # of all but the last answer
    ]
)
"""What is known of each row."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of rows, and what they are."""

    path: str
    part: int
    """Which part of the mixture it belongs to; HELD_OUT."""
    layout: Layout


@dataclass(slots=True)
class Tokenized:
    """What became of some rows."""

    ids_L: NDArray[np.int32]
    is_target_L: NDArray[np.bool_]
    index_N: NDArray[Any]
    """Of type INDEX; ``start`` and ``image_start`` count from the first token and the first image here."""
    images: list[Image] = field(default_factory=list)
    """The images that the rows show, in their order; read once, so that they have digests."""
    bad: list[tuple[int, BadRow]] = field(default_factory=list)
    """File and row of all that are left out."""
    references: dict[int, str] = field(default_factory=dict)
    """For rows that may be held out, by their place here: what is asked and answered, as JSON."""
    truncated: int = 0
    """Rows cut off at the longest length."""
    pieces: int = 0
    """Rows that are there in place of fewer, longer ones."""


class RowTokenizer:
    """Makes token ids of rows.

    Args:
        spec: What becomes of long rows, what is learned, which share is held out.
        turns: How conversations are written.
        files: Where rows come from.
        holds_out_share: Whether some of the training rows are held out, by their content.
    """

    def __init__(
        self, spec: DataSpec, turns: TurnFormat, files: Sequence[SourceFile], *, holds_out_share: bool
    ) -> None:
        self._spec, self._turns, self._files = spec, turns, files
        self._converters = [Converter(file.layout, spec, Path(file.path).parent) for file in files]
        self._limit = held_out_limit(spec.eval_share) if holds_out_share else 0

    def tokenize(self, rows: Iterable[Record | BadRow], file: int) -> Tokenized:
        """Return what became of rows of a file.

        Args:
            rows: Some of its rows, in their order.
            file: Which file.
        """
        collected = _Collected(self._files[file].part, file, self._limit)
        stream = iter(rows)
        while chunk := list(islice(stream, ROWS_AT_ONCE)):
            contents: list[tuple[int, Content]] = []
            for row in chunk:
                if isinstance(row, BadRow):
                    collected.bad.append((file, row))
                    continue
                try:
                    contents.append((row.line, with_images_read(self._converters[file](row.fields))))
                except BadRowError as error:
                    collected.leave_out(row.line, error)
            for line, content, tokens in self._tokens_of(contents, collected):
                self._fit(line, content, tokens, collected)
        return collected.result()

    def _tokens_of(
        self, contents: Sequence[tuple[int, Content]], collected: _Collected
    ) -> Iterator[tuple[int, Content, TokenizedRow]]:
        try:
            tokens = self._encode([content for _, content in contents])
        except (BadRowError, DataError):
            yield from self._one_by_one(contents, collected)  # one of them is bad
            return
        yield from ((line, content, row) for (line, content), row in zip(contents, tokens, strict=True))

    def _one_by_one(
        self, contents: Sequence[tuple[int, Content]], collected: _Collected
    ) -> Iterator[tuple[int, Content, TokenizedRow]]:
        for line, content in contents:
            try:
                (tokens,) = self._encode([content])
            except BadRowError as error:
                collected.leave_out(line, error)
            except DataError as error:
                collected.leave_out(line, BadRowError("bad_template", error.problem))
            else:
                yield line, content, tokens

    def _encode(self, contents: Sequence[Content]) -> list[TokenizedRow]:
        """Return the tokens of contents, whatever their length."""
        conversations = [content for content in contents if isinstance(content, Conversation)]
        documents = [content for content in contents if isinstance(content, Document)]
        turns = iter(self._turns.tokenize(conversations))
        texts = iter(self._turns.tokenize_texts([document.text for document in documents]))
        found = []
        for content in contents:
            if isinstance(content, Conversation):
                row = next(turns)
                found.append(_only_last(row) if self._spec.learn == "last" else row)
            else:
                found.append(self._document([*next(texts), self._turns.special.eos]))
        return found

    def _document(self, ids: list[int]) -> TokenizedRow:
        bos = self._turns.special.bos
        row = ids if bos is None else [bos, *ids]
        return TokenizedRow(row, [place > 0 for place in range(len(row))])  # nothing predicts the first

    def _fit(self, line: int, content: Content, tokens: TokenizedRow, collected: _Collected) -> None:
        """Keep a row, or what the policy makes of one that is too long."""
        limit = self._spec.max_length
        if len(tokens.ids) <= limit:
            collected.keep(line, content, tokens)
            return
        policy = self._spec.too_long
        if policy == "auto":
            policy = "split" if isinstance(content, Document) else "skip"
        if policy == "truncate":
            cut = TokenizedRow(tokens.ids[:limit], tokens.is_target[:limit])
            image = self._turns.special.image
            if any(cut.is_target[1:]) and (image is None or image not in tokens.ids[limit:]):
                collected.keep(line, content, cut)
                collected.truncated += 1
                return
        elif policy == "split" and isinstance(content, Document):
            opening = 0 if self._turns.special.bos is None else 1
            ids, size = tokens.ids[opening:], limit - opening
            # One token alone predicts nothing where no other opens the piece.
            starts = [start for start in range(0, len(ids), size) if opening or start + 1 < len(ids)]
            for start in starts:
                collected.keep(line, content, self._document(ids[start : start + size]), piece=start // size)
            collected.pieces += len(starts) - 1
            return
        elif policy == "split" and isinstance(content, Conversation) and len(content.turns) > 2 and not content.images:
            # Questions about an image would be parted from it.
            self._split(line, content, collected)
            return
        collected.leave_out(line, BadRowError("too_long", f"{len(tokens.ids)} tokens; data.max_length is {limit}"))

    def _split(self, line: int, content: Conversation, collected: _Collected) -> None:
        """Cut a conversation between its exchanges into conversations that fit, each as long as can be."""
        limit, kept, begin = self._spec.max_length, 0, 0
        while begin < len(content.turns):
            best: tuple[Conversation, TokenizedRow] | None = None
            end = begin + 2
            while end <= len(content.turns):
                piece = Conversation(content.turns[begin:end], content.system)
                (tokens,) = self._encode([piece])
                if len(tokens.ids) > limit:
                    break
                best = (piece, tokens)
                end += 2
            if best is None:
                reason = f"one exchange of {len(tokens.ids)} tokens; data.max_length is {limit}"
                collected.leave_out(line, BadRowError("too_long", reason))
                begin += 2
                continue
            collected.keep(line, *best)
            begin += len(best[0].turns)
            kept += 1
        collected.pieces += max(0, kept - 1)


class _Collected:
    """What was made of rows so far."""

    def __init__(self, part: int, file: int, held_out_below: int) -> None:
        self.part, self.file, self.held_out_below = part, file, held_out_below
        self.ids: list[NDArray[np.int32]] = []
        self.is_target: list[NDArray[np.bool_]] = []
        self.index: list[tuple[int, ...]] = []
        self.bad: list[tuple[int, BadRow]] = []
        self.references: dict[int, str] = {}
        self.smallest: tuple[int, int, str] | None = None
        self.images: list[Image] = []
        self.tokens = self.truncated = self.pieces = 0

    def leave_out(self, line: int, error: BadRowError) -> None:
        self.bad.append((self.file, BadRow(line, error.reason, error.detail)))

    def keep(self, line: int, content: Content, tokens: TokenizedRow, *, piece: int = 0) -> None:
        digest, low, question = digests_of(content)
        if piece:  # pieces of a document are held out together, and are no copies of each other
            low = (low + piece) % 2**64
        place, targets = len(self.index), sum(tokens.is_target)
        length = len(tokens.ids)
        self.ids.append(np.asarray(tokens.ids, np.int32))
        self.is_target.append(np.asarray(tokens.is_target, np.bool_))
        images = content.images if isinstance(content, Conversation) else ()
        where = (self.tokens, length, targets, self.part, self.file, line)
        self.index.append((*where, len(self.images), len(images), digest, low, question))
        self.tokens += length
        self.images.extend(images)
        if self.part == HELD_OUT or digest < self.held_out_below:
            self.references[place] = _reference(content)
        elif self.smallest is None or digest < self.smallest[0]:
            # Of a few rows none may fall below the limit; then the smallest of all is held out.
            self.smallest = (digest, place, _reference(content))

    def result(self) -> Tokenized:
        if self.smallest is not None:
            self.references[self.smallest[1]] = self.smallest[2]
        return Tokenized(
            ids_L=np.concatenate(self.ids) if self.ids else np.empty(0, np.int32),
            is_target_L=np.concatenate(self.is_target) if self.ids else np.empty(0, np.bool_),
            index_N=np.array(self.index, INDEX),
            images=self.images,
            bad=self.bad,
            references=self.references,
            truncated=self.truncated,
            pieces=self.pieces,
        )


def held_out_limit(share: float) -> int:
    """Return the digest below which a row is held out, where this share of all rows is."""
    return int(share * 2**64)


def digests_of(content: Content) -> tuple[int, int, int]:
    """Return a hash of all that a row means, as two numbers below 2**64, and one of all but its last answer.

    Args:
        content: A row; its images were read.
    """
    parts: list[str | bytes]
    if isinstance(content, Document):
        parts = [content.text]
        question = _hash(parts)
    else:
        parts = [content.system]
        for turn in content.turns:
            images = [part for image in turn.images for part in (image.digest, f"{image.at}")]
            parts += [turn.role, *images, turn.text]
        question = _hash(parts[:-1])
    whole = _hash(parts)
    return int.from_bytes(whole[:8]), int.from_bytes(whole[8:]), int.from_bytes(question[:8])


def _hash(parts: Iterable[str | bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part if isinstance(part, bytes) else part.encode()
        digest.update(len(raw).to_bytes(8))
        digest.update(raw)
    return digest.digest()


def _only_last(row: TokenizedRow) -> TokenizedRow:
    """Learn the last answer alone."""
    end = len(row.is_target) - row.is_target[::-1].index(True)
    begin = next((place + 1 for place in range(end - 1, -1, -1) if not row.is_target[place]), 0)
    return TokenizedRow(row.ids, [begin <= place < end for place in range(len(row.ids))])


def _reference(content: Content) -> str:
    if isinstance(content, Document):
        asked, answer = [], content.text
    else:
        asked = [{"role": turn.role, "text": turn.text} for turn in content.folded[:-1]]
        answer = content.answer.strip()
    return json.dumps({"prompt": asked, "answer": answer}, ensure_ascii=False)
