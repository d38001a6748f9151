"""A row as its file has it, before anybody asks what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Record:
    """A row of a file."""

    line: int
    """Where it begins in its file, counted from 1; in a Parquet file its row."""
    fields: Mapping[str, Any]
    """Its fields, as JSON has them; bytes too, out of Parquet."""
