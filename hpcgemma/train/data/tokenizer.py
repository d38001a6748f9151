"""The tokenizer: the model's own, or a small one trained from the rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from hpcgemma.errors import InputError
from hpcgemma.rows.conversation import Content, Document
from hpcgemma.train.data.prompts import CHAT_TEMPLATE, IMAGE_TOKENS, SPECIAL_TOKENS
from hpcgemma.train.failures import DataError

# Words keep the space before them, numbers stay apart from words, and signs such as `="` become one token.
_PIECES = r" ?\p{L}+|\p{N}{1,3}|[^\p{L}\p{N} ]+| +"


def train_tokenizer(contents: Iterable[Content], vocab_size: int, folder: Path, *, shows_images: bool = False) -> None:
    """Train a byte-pair tokenizer with Gemma's special tokens and write it to a new folder.

    Args:
        contents: What the training rows mean.
        vocab_size: Tokens at most, the special ones and the 256 bytes included.
        folder: Where it goes; ``AutoTokenizer.from_pretrained`` loads it.
        shows_images: Give it Gemma 3's tokens of images too.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *(IMAGE_TOKENS if shows_images else ())],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for content in contents for text in _texts_of(content)), trainer)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    if shows_images:  # the names by which Gemma3Processor finds them
        settings["extra_special_tokens"] = dict(
            zip(("boi_token", "image_token", "eoi_token"), IMAGE_TOKENS, strict=True)
        )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _texts_of(content: Content) -> list[str]:
    if isinstance(content, Document):
        return [content.text]
    return [f"{turn.role}\n{turn.text}" for turn in content.folded]


def copy_tokenizer(path: str, revision: str | None, folder: Path) -> None:
    """Load a tokenizer from a folder or the local hub cache, never from the network, and write it to a new folder.

    Raises:
        InputError: There is none.
        DataError: It has no fast form.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no tokenizer at {path!r}, neither as a folder nor in the hub cache: {first_line(error)}",
            f"hf download {path}  (on a node with internet), or --set tokenizer.path=FOLDER",
        ) from None
    tokenizer.save_pretrained(str(folder))
    if not (folder / "tokenizer.json").exists():
        raise DataError(
            f"the tokenizer at {path!r} has no tokenizer.json", "convert it once with AutoTokenizer of transformers"
        )


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the fast tokenizer of a folder, with special tokens inside texts taken as plain text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return f"{error}".strip().splitlines()[0] if f"{error}".strip() else type(error).__name__
