"""How conversations become token ids and a mask of what is learned; and Gemma's way to do it.

    <bos><start_of_turn>user
    ...<end_of_turn>
    <start_of_turn>model
    ...<end_of_turn>

The loss is taken on each answer and the <end_of_turn> that ends it. The text between special tokens is encoded piece
by piece, with special tokens in it taken as plain text: a row that *says* "<end_of_turn>" cannot end a turn. Source
of the format: the chat template of google/gemma-3-4b-it (contents are stripped; a system text opens the first user
turn, followed by an empty line). Other models' ways are in templated.py.

An image in a user turn is <start_of_image>, as many <image_soft_token> as its model takes, <end_of_image>, with an
empty line before and after. Source: ``Gemma3Processor`` of transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenizers import Tokenizer

from hpcgemma.rows.bad_rows import BadRowError
from hpcgemma.rows.conversation import Conversation, Turn

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
"""Gemma's special tokens; the first four have the ids 0 to 3."""

IMAGE_TOKENS = ("<start_of_image>", "<image_soft_token>", "<end_of_image>")
"""Gemma 3's tokens around and of an image."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] | trim + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (system if loop.first else '') }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<start_of_image>' if part['type'] == 'image' else part['text'] | trim }}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
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
    image: int | None = None
    """Stands for a piece of an image; None: the model is shown none."""


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """What stands for an image."""

    begin: int
    soft: int
    """The token whose places the model fills with what it sees."""
    end: int
    count: int
    """Soft tokens of an image."""

    @property
    def ids(self) -> list[int]:
        """The tokens of one image."""
        return [self.begin, *[self.soft] * self.count, self.end]


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
    image: ImageTokens | None = None
    """None: it is shown no images."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, image_tokens: int | None = None) -> GemmaTurns | None:
        """Return the format, or None where the tokenizer lacks one of Gemma's special tokens.

        Args:
            tokenizer: It takes special tokens in texts as plain text (``load_tokenizer``).
            image_tokens: Tokens that stand for an image; None: the model sees none.
        """
        known = ((name, tokenizer.token_to_id(name)) for name in (*SPECIAL_TOKENS, *IMAGE_TOKENS))
        found = {name: number for name, number in known if number is not None}
        if not {*SPECIAL_TOKENS} <= {*found, "<unk>"}:
            return None
        image = None
        if image_tokens is not None and {*IMAGE_TOKENS} <= {*found}:
            begin, soft, end = (found[name] for name in IMAGE_TOKENS)
            image = ImageTokens(begin, soft, end, image_tokens)
        special = SpecialIds(
            pad=found["<pad>"],
            eos=found["<eos>"],
            end_of_turn=found["<end_of_turn>"],
            bos=found["<bos>"],
            image=None if image is None else image.soft,
        )
        return cls(tokenizer, special, found["<bos>"], found["<start_of_turn>"], image)

    def tokenize(self, conversations: Sequence[Conversation]) -> list[TokenizedRow]:
        """Return the token ids of conversations, and which of them are learned.

        Raises:
            BadRowError: One shows an image, and the model sees none.
        """
        pieces: list[str] = ["\n", "model\n"]
        for conversation in conversations:
            if conversation.images and self.image is None:
                raise BadRowError("wrong_type", "it shows an image, and the first rows of the data show none")
            for turn in conversation.folded:
                pieces.extend(_pieces(turn))
        encoded = self.tokenizer.encode_batch(pieces, add_special_tokens=False)
        newline, model_opening = encoded[0].ids, encoded[1].ids
        texts = iter(encoded[2:])
        rows = []
        for conversation in conversations:
            ids, is_target = [self.bos], [False]
            for turn in conversation.turns:
                answers = turn.role == "model"
                opening = [self.start_of_turn, *(model_opening if answers else [])]
                content = [*next(texts).ids]
                for _ in turn.images:
                    content += [*(self.image.ids if self.image else []), *next(texts).ids]
                content.append(self.special.end_of_turn)
                ids += [*opening, *content, *newline]
                is_target += [False] * len(opening) + [answers] * len(content) + [False] * len(newline)
            rows.append(TokenizedRow(ids, is_target))
        return rows

    def tokenize_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts as they are, without a token before or after them."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _pieces(turn: Turn) -> list[str]:
    """Return the texts that are encoded in one go each: a model's answer stands alone, as it is asked for it."""
    if turn.role == "model":
        return [turn.text.strip()]
    first, *others = turn.pieces if turn.images else (turn.text.strip(),)
    texts = [f"user\n{first}", *others]
    last = len(texts) - 1
    return [("\n\n" if place else "") + text + ("\n\n" if place < last else "") for place, text in enumerate(texts)]
