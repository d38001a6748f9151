"""Rows as conversations, read line by line from JSON-lines files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpcgemma.recipes.types import DataSpec
from hpcgemma.train.failures import DataError

RowFormat = Literal["messages", "prompt_completion", "svg_caption"]

VALID_ROWS: dict[RowFormat, str] = {
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "prompt_completion": '{"prompt": "...", "completion": "..."}',
    "svg_caption": '{"svg": "<svg>...</svg>", "caption": "..."}',
}
"""One valid row of each format, for messages."""

_ROLES = {"user": "user", "assistant": "model", "model": "model", "system": "system"}


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: Literal["user", "model"]
    text: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """User and model by turns, the user first, the model last."""

    turns: tuple[Turn, ...]
    system: str = ""
    """What the model is told before the first turn."""

    @property
    def folded(self) -> tuple[Turn, ...]:
        """The turns with the system text at the head of the first, for formats that know no system message."""
        if not self.system:
            return self.turns
        first, *others = self.turns
        return (Turn(first.role, f"{self.system.strip()}\n\n{first.text.strip()}"), *others)

    @property
    def answer(self) -> str:
        """The last thing the model says."""
        return self.turns[-1].text


class _BadRowError(ValueError):
    """What is wrong with one row; the caller knows the file and the line."""


def conversation_of(row: Mapping[str, Any], data: DataSpec) -> Conversation:
    """Turn one row into a conversation.

    Raises:
        ValueError: The row is not of the recipe's format; the text says what is wrong.
    """
    if data.format == "messages":
        return _from_messages(row)
    if data.format == "prompt_completion":
        question, answer = _text(row, "prompt"), _text(row, "completion")
    else:
        question, answer = f"{data.instruction}\n{_text(row, 'svg')}", _text(row, "caption")
    if not answer.strip():
        raise _BadRowError("its answer is empty")
    return Conversation((Turn("user", question), Turn("model", answer)))


def read_conversations(path: Path, data: DataSpec) -> Iterator[Conversation]:
    """Yield the conversations of a JSON-lines file; empty lines are passed over.

    Raises:
        DataError: The file is missing, has no row, or a row is not valid; names file and line, and a valid row.
    """
    count = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield conversation_of(_parse(line), data)
                except _BadRowError as error:
                    raise DataError(
                        f"{path}, line {number}: {error}",
                        f"correct or remove the line; a valid one: {VALID_ROWS[data.format]}",
                    ) from None
                count += 1
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}",
            "--set data.train=FILE (and data.eval), as an absolute path that the compute nodes see",
        ) from None
    if not count:
        raise DataError(f"{path} holds no rows", f"one row per line: {VALID_ROWS[data.format]}")


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise _BadRowError(f"it is not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise _BadRowError(f"it is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise _BadRowError(f"it is a JSON {type(row).__name__}, not an object")
    return row


def _text(row: Mapping[str, Any], field: str) -> str:
    if field not in row:
        raise _BadRowError(f"field {field!r} is missing; it has {sorted(row)}")
    value = row[field]
    if not isinstance(value, str):
        raise _BadRowError(f"field {field!r} is no text but {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _BadRowError(f"field {field!r} holds half of a surrogate pair, which is no text") from None
    return value


def _from_messages(row: Mapping[str, Any]) -> Conversation:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _BadRowError(f"field 'messages' is not a list of messages; it has the fields {sorted(row)}")
    system = ""
    turns: list[Turn] = []
    for position, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _BadRowError(f"messages[{position}] is no object")
        role, text = _ROLES.get(str(message.get("role"))), _text(message, "content")
        if role is None:
            raise _BadRowError(f"messages[{position}] has role {message.get('role')!r}; valid: {', '.join(_ROLES)}")
        if role == "system":
            if position:
                raise _BadRowError(f"messages[{position}] is a system message; only the first may be")
            system = text
            continue
        expected = "model" if len(turns) % 2 else "user"
        if role != expected:
            who = "assistant" if expected == "model" else "user"
            raise _BadRowError(f"messages[{position}] is from {message['role']!r}; user and assistant take turns, "
                          f"and here it is {who}'s")  # fmt: skip
        if role == "model" and not text.strip():
            raise _BadRowError(f"messages[{position}] is an empty answer")
        turns.append(Turn("model" if role == "model" else "user", text))
    if not turns or turns[-1].role != "model":
        raise _BadRowError("the last message is not the assistant's, so there is nothing to learn from it")
    return Conversation(tuple(turns), system)
