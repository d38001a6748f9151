"""Which way a tokenizer's model writes conversations."""

from __future__ import annotations

from pathlib import Path

from hpcgemma.train.data.chat_template import NO_TEMPLATE_HINT, read_chat_template
from hpcgemma.train.data.processor import image_tokens
from hpcgemma.train.data.prompts import GemmaTurns, TurnFormat
from hpcgemma.train.data.templated import TemplateTurns
from hpcgemma.train.data.tokenizer import load_tokenizer
from hpcgemma.train.failures import DataError


def turn_format(folder: Path, name: str) -> TurnFormat:
    """Return Gemma's turns for its tokenizers, and for others those of their chat template.

    Args:
        folder: The tokenizer, as from_pretrained loads it.
        name: Where it came from, for messages.

    Raises:
        DataError: It has no chat template, or one that cannot be trained on.
    """
    if (gemma := GemmaTurns.of(load_tokenizer(folder), image_tokens(folder))) is not None:
        return gemma
    template = read_chat_template(folder)
    if template is None:
        raise DataError(
            f"the tokenizer of {name!r} has neither a chat template nor Gemma's tokens, so rows cannot become turns",
            NO_TEMPLATE_HINT,
        )
    return TemplateTurns.of(folder, template)
