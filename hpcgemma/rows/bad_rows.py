"""Rows that cannot be trained on: why, where, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Reason = Literal[
    "broken_file",
    "broken_json",
    "bad_utf8",
    "wrong_type",
    "missing_field",
    "bad_turns",
    "empty_answer",
    "bad_template",
    "missing_image",
    "corrupt_image",
    "too_long",
    "special_token",
    "duplicate",
]

SENTENCES: dict[Reason, str] = {
    "broken_file": "the rest of a file could not be read",
    "broken_json": "no valid JSON, or a table's row with too many or too few cells",
    "bad_utf8": "not UTF-8",
    "wrong_type": "a field of another type than its format has",
    "missing_field": "a field of its format is not there",
    "bad_turns": "user and assistant do not take turns, or the assistant does not have the last word",
    "empty_answer": "nothing to learn: the answer is empty",
    "bad_template": "the prompt template does not fit it",
    "missing_image": "an image that is not there",
    "corrupt_image": "an image that cannot be decoded",
    "too_long": "more tokens than data.max_length",
    "special_token": "a text says a special token, and this tokenizer cannot write it as plain text",
    "duplicate": "the same as an earlier row",
}
"""What each reason means, in a few words."""

REASONS: tuple[Reason, ...] = get_args(Reason)


class BadRowError(ValueError):
    """What is wrong with one row; the caller knows the file and the line.

    Args:
        reason: In a word.
        detail: In a sentence, without a full stop.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is left out."""

    line: int
    """Its line in its file, counted from 1; in a Parquet file its row."""
    reason: Reason
    detail: str
