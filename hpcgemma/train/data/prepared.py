"""The prepared data of a run: token ids in flat files that ranks map into memory, written once.

Letters: N rows, L tokens of all rows together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcgemma.train.data.prompts import TokenizedRow

SUMMARY_NAME = "summary.json"
TOKENIZER_NAME = "tokenizer"
REFERENCES_NAME = "eval_rows.jsonl"


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of token ids, laid end to end."""

    ids_L: NDArray[np.int32]
    is_target_L: NDArray[np.bool_]
    """Whether a token is learned."""
    offsets_N1: NDArray[np.int64]
    """Where each row begins; one more entry for the end of the last."""
    targets_N: NDArray[np.int64]
    """Tokens of each row that are learned."""

    def __len__(self) -> int:
        return len(self.targets_N)

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets_N1)

    def ids(self, row: int) -> NDArray[np.int32]:
        """Return a row's token ids."""
        return self.ids_L[self.offsets_N1[row] : self.offsets_N1[row + 1]]

    def is_target(self, row: int) -> NDArray[np.bool_]:
        """Return which of a row's tokens are learned."""
        return self.is_target_L[self.offsets_N1[row] : self.offsets_N1[row + 1]]

    def prompt(self, row: int) -> NDArray[np.int32]:
        """Return a row's token ids up to its last answer."""
        is_target = self.is_target(row)
        last = int(np.flatnonzero(is_target)[-1])
        before = np.flatnonzero(~is_target[:last])
        return self.ids(row)[: int(before[-1]) + 1]

    def longest(self, count: int) -> NDArray[np.int64]:
        """Return the rows with most tokens, longest first."""
        return np.argsort(-self.lengths_N, kind="stable")[:count].astype(np.int64)

    def save(self, folder: Path, name: str) -> None:
        """Write the arrays to a folder."""
        for field in ("ids_L", "is_target_L", "offsets_N1", "targets_N"):
            np.save(folder / f"{name}.{field}.npy", getattr(self, field))

    @classmethod
    def open(cls, folder: Path, name: str) -> TokenRows:
        """Map the arrays of a folder into memory."""
        return cls(
            *(
                np.load(folder / f"{name}.{field}.npy", mmap_mode="r")
                for field in ("ids_L", "is_target_L", "offsets_N1", "targets_N")
            )
        )

    @classmethod
    def of(cls, rows: Iterable[TokenizedRow]) -> TokenRows:
        """Lay tokenized rows end to end."""
        ids: list[NDArray[np.int32]] = []
        is_target: list[NDArray[np.bool_]] = []
        for row in rows:
            ids.append(np.asarray(row.ids, np.int32))
            is_target.append(np.asarray(row.is_target, np.bool_))
        lengths = [len(each) for each in ids]
        return cls(
            ids_L=np.concatenate(ids) if ids else np.empty(0, np.int32),
            is_target_L=np.concatenate(is_target) if ids else np.empty(0, np.bool_),
            offsets_N1=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            targets_N=np.asarray([int(each.sum()) for each in is_target], np.int64),
        )


@dataclass(frozen=True, slots=True)
class PreparedData:
    """What ``hpcgemma.train.prepare`` made."""

    folder: Path
    train: TokenRows
    eval: TokenRows
    summary: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> PreparedData:
        """Open a prepared folder."""
        return cls(
            folder=folder,
            train=TokenRows.open(folder, "train"),
            eval=TokenRows.open(folder, "eval"),
            summary=json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8")),
        )

    @property
    def fingerprint(self) -> str:
        """Hash of the rows and of all that made them into tokens."""
        return str(self.summary["fingerprint"])

    @property
    def vocab_size(self) -> int:
        """Tokens the tokenizer knows."""
        return int(self.summary["vocab_size"])

    @property
    def special(self) -> dict[str, int]:
        """Ids of pad, eos and end_of_turn, and of bos where there is one."""
        return {name: int(number) for name, number in self.summary["special_ids"].items()}

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return list(dict.fromkeys([self.special["eos"], self.special["end_of_turn"]]))

    @property
    def tokenizer_dir(self) -> Path:
        """The tokenizer, as from_pretrained loads it."""
        return self.folder / TOKENIZER_NAME

    def questions(self) -> list[tuple[str, str]]:
        """Return what each held-out row asks, turn by turn, and its true answer."""
        with (self.folder / REFERENCES_NAME).open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return [("\n".join(turn["text"] for turn in row["prompt"]), row["answer"]) for row in rows]
