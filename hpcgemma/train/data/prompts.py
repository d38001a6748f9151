"""Gemma's turn format, as token ids and a mask of what is learned.

    <bos><start_of_turn>user
    ...<end_of_turn>
    <start_of_turn>model
    ...<end_of_turn>

The loss is taken on each answer and the <end_of_turn> that ends it. The text between special tokens is encoded piece
by piece, with special tokens in it taken as plain text: a row that *says* "<end_of_turn>" cannot end a turn. Source
of the format: the chat template of google/gemma-3-4b-it (contents are stripped; a system text opens the first user
turn, followed by an empty line).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from hpcgemma.train.data.rows import Conversation, Turn
from hpcgemma.train.failures import DataError

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
"""Gemma's special tokens; the first four have the ids 0 to 3."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] | trim + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (system if loop.first else '') + message['content'] | trim "
    "+ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""The same format as a chat template, for the tokenizers that hpcgemma trains."""


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of the tokens that the format needs."""

    pad: int
    eos: int
    bos: int
    start_of_turn: int
    end_of_turn: int


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """A conversation as token ids."""

    ids: list[int]
    is_target: list[bool]
    """For each token, whether it is learned."""


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Return the ids of Gemma's special tokens.

    Raises:
        DataError: The tokenizer lacks one.
    """
    known = ((name, tokenizer.token_to_id(name)) for name in SPECIAL_TOKENS)
    found = {name: number for name, number in known if number is not None}
    missing = [name for name in SPECIAL_TOKENS if name not in found and name != "<unk>"]
    if missing:
        raise DataError(
            f"the tokenizer has no token {' or '.join(missing)}: it is not Gemma's",
            "--set tokenizer.path=FOLDER of a Gemma 1, 2 or 3 tokenizer",
        )
    return SpecialIds(
        pad=found["<pad>"],
        eos=found["<eos>"],
        bos=found["<bos>"],
        start_of_turn=found["<start_of_turn>"],
        end_of_turn=found["<end_of_turn>"],
    )


def tokenize(conversations: Sequence[Conversation], tokenizer: Tokenizer, special: SpecialIds) -> list[TokenizedRow]:
    """Return the token ids of conversations, and which of them are learned."""
    pieces: list[str] = ["\n", "model\n"]
    for conversation in conversations:
        pieces.extend(_piece(turn) for turn in conversation.turns)
    encoded = tokenizer.encode_batch(pieces, add_special_tokens=False)
    newline, model_opening = encoded[0].ids, encoded[1].ids
    texts = iter(encoded[2:])
    rows = []
    for conversation in conversations:
        ids, is_target = [special.bos], [False]
        for turn in conversation.turns:
            answers = turn.role == "model"
            opening = [special.start_of_turn, *(model_opening if answers else [])]
            content = [*next(texts).ids, special.end_of_turn]
            ids += [*opening, *content, *newline]
            is_target += [False] * len(opening) + [answers] * len(content) + [False] * len(newline)
        rows.append(TokenizedRow(ids, is_target))
    return rows


def _piece(turn: Turn) -> str:
    """Return the text that is encoded in one go: as a model sees it when it is asked, the answer stands alone."""
    return turn.text.strip() if turn.role == "model" else f"user\n{turn.text.strip()}"
