"""What rows mean, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcgemma.recipes.types import DataSpec
from hpcgemma.rows.conversation import Conversation
from hpcgemma.rows.conversion import Converter
from hpcgemma.rows.formats import detect
from hpcgemma.rows.records import Record


def conversation_of(row: Mapping[str, Any], data: DataSpec) -> Conversation:
    """Return what a row of a recipe's format means."""
    layout = detect([Record(1, row)], data, "rows.jsonl")
    content = Converter(layout, data, Path("/data"))(row)
    assert isinstance(content, Conversation)
    return content
