"""Prepared folders made by hand, of rows of random tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from hpcgemma.train.data.packing import best_fit
from hpcgemma.train.data.prepared import REFERENCES_NAME, TOKENIZER_NAME
from hpcgemma.train.data.prompts import TokenizedRow
from hpcgemma.train.data.summary import SUMMARY_NAME
from hpcgemma.train.data.token_rows import IDS_NAME, TARGETS_NAME, TokenRows

VOCAB_SIZE = 300
SPECIAL = {"pad": 0, "eos": 1, "bos": 2, "end_of_turn": 3}
CAPACITY = 64


def random_rows(lengths: Sequence[int], seed: int = 0) -> list[TokenizedRow]:
    """Return rows of random tokens, of which the second half is learned."""
    generator = np.random.default_rng(seed)
    return [
        TokenizedRow(
            generator.integers(6, VOCAB_SIZE, length).tolist(),
            [place >= length // 2 for place in range(length)],
        )
        for length in lengths
    ]


def some_lengths(count: int, seed: int = 0) -> list[int]:
    """Return lengths that fit into a pack, most of them short."""
    lengths: list[int] = np.random.default_rng(seed).integers(4, CAPACITY // 2, count).tolist()
    return lengths


def write_prepared(folder: Path, *, train: int = 90, held_out: int = 5, packed: bool = True) -> None:
    """Write what ``hpcgemma.train.prepare`` would, but for its fingerprint."""
    folder.mkdir(parents=True)
    rows = TokenRows.of(random_rows(some_lengths(train + held_out)))
    rows.ids_L.tofile(folder / IDS_NAME)
    rows.is_target_L.tofile(folder / TARGETS_NAME)
    for name, chosen in (("train", slice(0, train)), ("eval", slice(train, None))):
        part = TokenRows(
            rows.ids_L, rows.is_target_L, rows.starts_N[chosen], rows.lengths_N[chosen], rows.targets_N[chosen]
        )
        part.save_index(folder, name)
        if packed and name == "train":
            best_fit(part.lengths_N, CAPACITY).save(folder, name)
    summary: dict[str, Any] = {"fingerprint": "by hand", "vocab_size": VOCAB_SIZE, "special_ids": SPECIAL}
    (folder / SUMMARY_NAME).write_text(json.dumps(summary), encoding="utf-8")
    (folder / REFERENCES_NAME).write_text("", encoding="utf-8")
    words = Tokenizer(WordLevel({f"word{number}": number for number in range(VOCAB_SIZE)}, unk_token="word5"))
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=words).save_pretrained(folder / TOKENIZER_NAME)
