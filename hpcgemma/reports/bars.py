"""Where a run's time went, as bars: their shares side by side, and its pieces in their order. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from hpcgemma.runs.spans import Span, Use
from hpcgemma.runs.time_use import TimeUse
from hpcgemma.walltime import duration

WIDTH = 1000
"""Of a whole bar, in its own units."""
_TICKS = 4
"""Stretches between the marks of a time axis."""
_WORDS = {
    Use.QUEUED: "waiting for nodes",
    Use.STOPPED: "ended, until it was resumed",
    Use.RESTARTING: "restarting",
    Use.TRAINING: "training",
    Use.LOST: "lost: made again later",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a bar."""

    start: float
    """In the bar's units."""
    width: float
    kind: str
    """By which it is coloured."""
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A part of the time with nodes."""

    kind: str
    meaning: str
    seconds: float
    part: float
    """Of all, from 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A mark of a time axis."""

    place: float
    """In the bar's units."""
    words: str


def shares_of(use: TimeUse) -> tuple[Share, ...]:
    """Return what the time with nodes was used for; nothing before there was any."""
    whole = use.allocated_s
    kinds = (
        ("productive", "steps and evaluations that count in the result", use.productive_s),
        ("saving", "checkpoints, while the training stood still", use.saving_s),
        ("restarting", "from having nodes to the first step, the first start too", use.restarting_s),
        ("lost", "steps that had to be made again", use.lost_s),
    )
    if whole <= 0:
        return ()
    return tuple(
        Share(kind=kind, meaning=meaning, seconds=seconds, part=seconds / whole) for kind, meaning, seconds in kinds
    )


def share_bar(shares: Sequence[Share]) -> tuple[Piece, ...]:
    """Return shares side by side."""
    pieces, start = [], 0.0
    for share in shares:
        width = share.part * WIDTH
        words = f"{share.kind}: {duration(share.seconds)}, {share.part:.1%}"
        pieces.append(Piece(start=round(start, 3), width=round(width, 3), kind=share.kind, words=words))
        start += width
    return tuple(pieces)


def timeline(pieces: Sequence[Span]) -> tuple[Piece, ...]:
    """Return the pieces of a run's time in their order, along one axis."""
    begin, end = _ends(pieces)
    if end <= begin:
        return ()
    return tuple(
        Piece(
            start=round((span.start - begin) / (end - begin) * WIDTH, 3),
            width=round(span.seconds / (end - begin) * WIDTH, 3),
            kind=span.use.value,
            words=_words(span),
        )
        for span in pieces
    )


def ticks(pieces: Sequence[Span]) -> tuple[Tick, ...]:
    """Return marks of the timeline's axis, in the time of the place where the report is made."""
    begin, end = _ends(pieces)
    if end <= begin:
        return ()
    form = "%H:%M:%S" if end - begin < 600 else "%H:%M" if end - begin < 20 * 3600 else "%d %b %H:%M"
    return tuple(_ticks(begin, end, form))


def _ticks(begin: float, end: float, form: str) -> Iterator[Tick]:
    for number in range(_TICKS + 1):
        at = begin + (end - begin) * number / _TICKS
        words = datetime.fromtimestamp(at).astimezone().strftime(form)
        yield Tick(place=WIDTH * number / _TICKS, words=words)


def _ends(pieces: Sequence[Span]) -> tuple[float, float]:
    return min((span.start for span in pieces), default=0.0), max((span.end for span in pieces), default=0.0)


def _words(span: Span) -> str:
    """Return what a piece says when it is pointed at."""
    parts = [f"{_WORDS[span.use]} for {duration(span.seconds)}"]
    if span.use is Use.TRAINING and span.saving_s:
        parts.append(f"of which saving {span.saving_s:.1f} s")
    if span.lost_steps:
        parts.append(f"{span.lost_steps} steps")
    where = f"attempt {span.attempt}: " if span.attempt else ""
    return where + ", ".join(parts)
