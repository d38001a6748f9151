"""The elements of one large JSON array, found without holding it, past broken ones too."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

from hpcgemma.rows.bad_rows import BadRow
from hpcgemma.rows.chunks import MAX_ROW_BYTES, Row
from hpcgemma.rows.compression import Pieces

_SPACE = re.compile(r"[\s,]*")
_FIRST_KEY = re.compile(r'\{\s*"[^"\\]*"\s*:')
_LOOKAHEAD = 16  # characters a JSON error can lie before the end of a buffer and still be healed by what follows
_TAIL = 64 * 1024  # characters kept while the next element is looked for


class ArrayReader:
    """Reads a JSON array; bytes that are no UTF-8 are kept for the worker to judge."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._stream = iter(pieces)
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._json = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._line = 1
        self._ended = False
        self._opening: str | None = None
        """How elements begin: the first key of the last object."""

    def rows(self) -> Iterator[Row]:
        """Yield the elements, and one bad row for each broken one."""
        self._fill(1)
        self._text = self._text.removeprefix("\ufeff")
        self._skip(re.compile(r"\s*\[?"), 1)
        while True:
            self._skip(_SPACE, 0)
            if self._at >= len(self._text):
                yield self._bad(self._line, "broken_file", self._pieces.damage or "the array has no closing ]")
                return
            if self._text[self._at] == "]":
                yield from self._after_array()
                return
            end = self._element_end()
            if end is not None:
                if opening := _FIRST_KEY.match(self._text, self._at):
                    self._opening = opening.group()
                yield Row(self._line, self._text[self._at : end].encode("utf-8", "surrogateescape"), self._pieces.end)
                self._advance(end)
                continue
            line, detail = self._line, self._detail
            found = self._next_element()
            if found:
                yield self._bad(line, "broken_json", detail)
                continue
            closed = self._text.rstrip().endswith("]") and self._pieces.damage is None
            if closed:
                yield self._bad(line, "broken_json", detail)
            else:
                yield self._bad(line, "broken_file", self._pieces.damage or "the file ends within a row")
            return

    def _after_array(self) -> Iterator[Row]:
        self._advance(self._at + 1)
        self._skip(re.compile(r"\s*"), 0)
        if self._at < len(self._text):
            yield self._bad(self._line, "broken_file", "something follows the closing ] of the array")
        elif self._pieces.damage:
            yield self._bad(self._line, "broken_file", self._pieces.damage)

    def _bad(self, line: int, reason: str, detail: str) -> Row:
        bad = BadRow(line, "broken_file" if reason == "broken_file" else "broken_json", detail)
        return Row(line, b"", self._pieces.end, bad)

    def _fill(self, characters: int) -> bool:
        """Read until this many characters are ahead; False: the file ends before."""
        parts = [self._text[self._at :]]
        ahead = len(parts[0])
        if ahead >= characters:
            return True
        # What lies behind stays up to the line's beginning: resynchronising asks for the indentation.
        behind = self._text[max(self._text.rfind("\n", 0, self._at), self._at - 1024, 0) : self._at]
        while ahead < characters and not self._ended:
            piece = next(self._stream, None)
            self._ended = piece is None
            part = self._decoder.decode(piece or b"", final=self._ended)
            parts.append(part)
            ahead += len(part)
        self._text, self._at = behind + "".join(parts), len(behind)
        return ahead >= characters

    def _advance(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _skip(self, pattern: re.Pattern[str], at_least: int) -> None:
        while True:
            match = pattern.match(self._text, self._at)
            to = match.end() if match else self._at
            self._advance(to)
            if self._at < len(self._text) or not self._fill(1):
                return
            if at_least and to:
                return

    def _element_end(self) -> int | None:
        """Return where the element here ends; None: it is broken, and ``_detail`` says how."""
        while True:
            ahead = len(self._text) - self._at
            final, healed_by_more = self._ended, False
            try:
                _, end = self._json.raw_decode(self._text, self._at)
                rest = _SPACE_ONLY.match(self._text, end)
                after = rest.end() if rest else end
                if after < len(self._text):
                    if self._text[after] in ",]{":
                        return end
                    self._detail = "no comma after a value"
                    return None
                if final:
                    return end
                healed_by_more = True
            except json.JSONDecodeError as error:
                self._detail = error.msg
                open_string = error.msg.startswith("Unterminated string")
                healed_by_more = open_string or error.pos >= len(self._text) - _LOOKAHEAD
            except (ValueError, RecursionError) as error:
                self._detail = str(error)
            if not healed_by_more or final or ahead > MAX_ROW_BYTES:
                return None
            self._fill(max(2 * ahead, 64))

    def _next_element(self) -> bool:
        """Go to the next element behind a broken one; False: there is none."""
        begin = self._text.rfind("\n", 0, self._at) + 1
        indent = self._text[begin : self._at]
        if begin and not indent.strip():
            values = r'[{\["\-0-9tfn]' if indent else r"\{"
            boundary = re.compile(rf"\n{re.escape(indent)}(?={values})")
        else:
            first_key = _FIRST_KEY.match(self._text, self._at)
            opening = first_key.group() if first_key else self._opening
            boundary = re.compile(rf",\s*(?={re.escape(opening or '{')})")
        self._advance(self._at + 1)
        while True:
            # A line break may be the very character before: look from there.
            match = boundary.search(self._text, self._at)
            if match:
                self._advance(match.end())
                return True
            if self._ended:
                return False
            ahead = len(self._text) - self._at
            if ahead > 2 * _TAIL:
                self._advance(len(self._text) - _TAIL)
            self._fill(max(2 * (len(self._text) - self._at), 64))

    _detail = ""


_SPACE_ONLY = re.compile(r"\s*")
