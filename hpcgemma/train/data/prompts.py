"""How conversations become token ids and a mask of what is learned; and Gemma's way to do it.

    <bos><start_of_turn>user
    ...<end_of_turn>
    <start_of_turn>model
    ...<end_of_turn>

The loss is taken on each answer and the <end_of_turn> that ends it. The text between special tokens is encoded piece
by piece, with special tokens in it taken as plain text: a row that *says* "<end_of_turn>" cannot end a turn. Source
of the format: the chat template of google/gemma-3-4b-it (contents are stripped; a system text opens the first user
turn, followed by an empty line). Other models' ways are in templated.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer

from hpcgemma.rows.conversation import Conversation, Turn

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
    """Ids of the tokens that training and generation need."""

    pad: int
    eos: int
    end_of_turn: int
    """Ends an answer; learned with it."""
    bos: int | None
    """None: the model knows no such token."""


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """A conversation as token ids."""

    ids: list[int]
    is_target: list[bool]
    """For each token, whether it is learned."""


class TurnFormat(Protocol):
    """One model's way to write conversations."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What texts are encoded with."""

    @property
    def special(self) -> SpecialIds:
        """Its special tokens."""

    def tokenize(self, conversations: Sequence[Conversation]) -> list[TokenizedRow]:
        """Return the token ids of conversations, and which of them are learned.

        Raises:
            BadRowError: A conversation cannot be written in this format.
        """

    def tokenize_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts as they are, without a token before or after them."""


@dataclass(frozen=True, slots=True)
class GemmaTurns:
    """The turns of Gemma 1, 2 and 3."""

    tokenizer: Tokenizer
    special: SpecialIds
    bos: int
    start_of_turn: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> GemmaTurns | None:
        """Return the format, or None where the tokenizer lacks one of Gemma's special tokens.

        Args:
            tokenizer: It takes special tokens in texts as plain text (``load_tokenizer``).
        """
        known = ((name, tokenizer.token_to_id(name)) for name in SPECIAL_TOKENS)
        found = {name: number for name, number in known if number is not None}
        if not {*SPECIAL_TOKENS} <= {*found, "<unk>"}:
            return None
        bos, end_of_turn = found["<bos>"], found["<end_of_turn>"]
        special = SpecialIds(pad=found["<pad>"], eos=found["<eos>"], end_of_turn=end_of_turn, bos=bos)
        return cls(tokenizer, special, bos, found["<start_of_turn>"])

    def tokenize(self, conversations: Sequence[Conversation]) -> list[TokenizedRow]:
        """Return the token ids of conversations, and which of them are learned."""
        pieces: list[str] = ["\n", "model\n"]
        for conversation in conversations:
            pieces.extend(_piece(turn) for turn in conversation.folded)
        encoded = self.tokenizer.encode_batch(pieces, add_special_tokens=False)
        newline, model_opening = encoded[0].ids, encoded[1].ids
        texts = iter(encoded[2:])
        rows = []
        for conversation in conversations:
            ids, is_target = [self.bos], [False]
            for turn in conversation.turns:
                answers = turn.role == "model"
                opening = [self.start_of_turn, *(model_opening if answers else [])]
                content = [*next(texts).ids, self.special.end_of_turn]
                ids += [*opening, *content, *newline]
                is_target += [False] * len(opening) + [answers] * len(content) + [False] * len(newline)
            rows.append(TokenizedRow(ids, is_target))
        return rows

    def tokenize_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts as they are, without a token before or after them."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _piece(turn: Turn) -> str:
    """Return the text that is encoded in one go: as a model sees it when it is asked, the answer stands alone."""
    return turn.text.strip() if turn.role == "model" else f"user\n{turn.text.strip()}"
