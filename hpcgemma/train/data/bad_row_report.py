"""The report of rows that were left out: counted by reason, listed with file and line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType

from hpcgemma.rows.bad_rows import SENTENCES, BadRow, Reason
from hpcgemma.train.failures import DataError

REPORT_NAME = "bad_rows.jsonl"
_EXAMPLES = 3


class BadRowReport:
    """Rows left out so far.

    Args:
        path: The report: a JSON object per row, of file, line, reason and detail.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[Reason] = Counter()
        self._examples: list[str] = []
        self._file = path.open("w", encoding="utf-8")

    def add(self, file: str, row: BadRow) -> None:
        """Note a row."""
        self.counts[row.reason] += 1
        if row.reason != "duplicate" and len(self._examples) < _EXAMPLES:
            self._examples.append(f"{file}, line {row.line}: {row.detail}")
        line = {"file": file, "line": row.line, "reason": row.reason, "detail": row.detail}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    @property
    def bad(self) -> int:
        """Rows left out, but for duplicates, which are no fault."""
        return self.counts.total() - self.counts["duplicate"]

    def described(self) -> str:
        """Return the counts by reason, most first, such as "3 broken_json, 1 too_long"."""
        return ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())

    def check(self, kept: int, limit: float) -> None:
        """Refuse data of which too much was left out.

        Args:
            kept: Rows that are left, duplicates among them.
            limit: Share of all rows that may be left out.

        Raises:
            DataError: More is.
        """
        total = kept + self.bad
        if self.bad <= limit * total:
            return
        reasons = [reason for reason, _ in self.counts.most_common() if reason != "duplicate"]
        what = "; ".join(f"{self.counts[reason]} {reason} ({SENTENCES[reason]})" for reason in reasons)
        hint = f"mend the rows, or --set data.max_bad_share={_rounded_up(self.bad / total)}"
        if reasons[0] == "too_long":
            hint = f"a larger --set data.max_length, --set data.too_long=truncate, or {hint.partition(', or ')[2]}"
        raise DataError(
            f"{self.bad} of {total} rows cannot be trained on, more than data.max_bad_share = {limit:g}: {what}. "
            f"First: {' | '.join(self._examples)}",
            hint,
        )

    def __enter__(self) -> BadRowReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _rounded_up(share: float) -> float:
    return min(1.0, (int(share * 100) + 1) / 100)
