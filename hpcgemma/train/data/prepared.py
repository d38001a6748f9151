"""The prepared data of a run: token ids and all else that training needs of its rows, written once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcgemma.train.data.images import IMAGES_NAME, Images
from hpcgemma.train.data.packing import Packs
from hpcgemma.train.data.samples import Part, Samples
from hpcgemma.train.data.summary import SUMMARY_NAME
from hpcgemma.train.data.token_rows import TokenRows

TOKENIZER_NAME = "tokenizer"
REFERENCES_NAME = "eval_rows.jsonl"


@dataclass(frozen=True, slots=True)
class PreparedData:
    """What ``hpcgemma.train.prepare`` made."""

    folder: Path
    train: TokenRows
    eval: TokenRows
    samples: Samples
    """What a step counts: the training rows, or what they are packed into."""
    summary: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> PreparedData:
        """Open a prepared folder."""
        summary = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
        images = None
        if (folder / IMAGES_NAME).exists():
            images = Images.open(folder, int(summary["special_ids"]["image"]), folder / TOKENIZER_NAME)
        train = TokenRows.open(folder, "train", images)
        parts = [Part(part["first"], part["count"], part["weight"]) for part in summary.get("parts", [])]
        return cls(
            folder=folder,
            train=train,
            eval=TokenRows.open(folder, "eval", images),
            samples=Samples.of(train, Packs.open(folder, "train"), parts),
            summary=summary,
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
        """Ids of pad, eos and end_of_turn, and of bos and of a piece of an image where there is such a token."""
        return {name: int(number) for name, number in self.summary["special_ids"].items()}

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return list(dict.fromkeys([self.special["eos"], self.special["end_of_turn"]]))

    @property
    def images(self) -> Images | None:
        """What the rows show; None: no row shows an image."""
        return None if self.train.images is None else self.train.images.images

    @property
    def tokenizer_dir(self) -> Path:
        """The tokenizer, and a vision model's processor, as from_pretrained loads them."""
        return self.folder / TOKENIZER_NAME

    def questions(self) -> list[tuple[str, str]]:
        """Return what each held-out row asks, turn by turn, and its true answer."""
        with (self.folder / REFERENCES_NAME).open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return [("\n".join(turn["text"] for turn in row["prompt"]), row["answer"]) for row in rows]
