"""The turns of any model whose tokenizer has a chat template: Qwen, Llama, Mistral, Phi and others.

A conversation is rendered and encoded whole, so its tokens are those of ``apply_chat_template``, with contents
stripped as for Gemma. Where an answer begins is where the same conversation, cut before it and asking for an answer,
ends; it is learned with the token that ends it. How the template ends answers, and whether it knows system messages,
is read off a probe.

A row that *says* "<|im_end|>" cannot end a turn: a mark inside what looks like a special token, taken out by the
tokenizer's first normalizer after special tokens are found, makes it plain text. What the template writes has no mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from hpcgemma.rows.bad_rows import BadRowError
from hpcgemma.rows.conversation import Conversation, Turn
from hpcgemma.train.data.chat_template import ChatTemplate, Message
from hpcgemma.train.data.prompts import SpecialIds, TokenizedRow
from hpcgemma.train.failures import DataError

MARK = "\ufdd0"
"""Unicode keeps it out of texts: a noncharacter, for a program's own use."""

_ROLES = {"user": "user", "model": "assistant"}
_PROBE = Conversation(
    tuple(Turn(role, f"{role} says {number}") for number in ("one", "two") for role in ("user", "model")),
    system="system says zero",
)
_HINT = "--set tokenizer.path=FOLDER of a copy of the tokenizer, with another chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Layout:
    """What a probe tells of a template."""

    has_system: bool
    """Whether it writes a system message; if not, the first turn begins with that text."""
    end_of_turn: str
    """The token that ends an answer."""
    framing: frozenset[str]
    """All tokens that it writes around answers."""


@dataclass(frozen=True, slots=True)
class TemplateTurns:
    """Turns as a chat template writes them."""

    tokenizer: Tokenizer
    special: SpecialIds
    template: ChatTemplate
    layout: Layout
    control: re.Pattern[str]
    """The tokens that only the template may write."""
    control_ids: frozenset[int]

    @classmethod
    def of(cls, folder: Path, template: ChatTemplate) -> TemplateTurns:
        """Return the format of a tokenizer folder.

        Raises:
            DataError: What is learned cannot be told from what is asked, or nothing ends an answer.
        """
        settings = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        added = [token for token in settings["added_tokens"] if not token["content"].isspace()]
        layout = layout_of(template, _any_of(token["content"] for token in added))
        control = [token for token in added if token["special"] or token["content"] in layout.framing]
        special = _special_ids(control, template, layout.end_of_turn)
        unknown = template.tokens.get("unk_token")  # stands for texts too
        return cls(
            tokenizer=_without_marks(settings, control),
            special=special,
            template=template,
            layout=layout,
            control=_any_of(token["content"] for token in control),
            control_ids=frozenset(token["id"] for token in control if token["content"] != unknown),
        )

    def tokenize(self, conversations: Sequence[Conversation]) -> list[TokenizedRow]:
        """Return the token ids of conversations, and which of them are learned."""
        if any(conversation.images for conversation in conversations):
            raise BadRowError("wrong_type", "it shows an image, and images are trained on for Gemma 3 alone")
        written = [self._write(conversation) for conversation in conversations]
        encoded = self.tokenizer.encode_batch([text for text, _ in written], add_special_tokens=False)
        return [self._row(text, answers, each) for (text, answers), each in zip(written, encoded, strict=True)]

    def tokenize_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of texts as they are, without a token before or after them."""
        plain = [self._plain(text) for text in texts]
        encoded = self.tokenizer.encode_batch(plain, add_special_tokens=False)
        return [self._checked(text, each).ids for text, each in zip(plain, encoded, strict=True)]

    def _write(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
        """Return a conversation's text, and for each answer where it begins and where its end token does."""
        messages = [
            {"role": message["role"], "content": self._plain(message["content"])}
            for message in _messages(conversation, has_system=self.layout.has_system)
        ]
        text = self.template.render(messages)
        answers = []
        for place in _answers(messages):
            begin = _begin(self.template, messages, place, text)
            end = text.find(self.layout.end_of_turn, begin)
            if end < 0:
                raise BadRowError("bad_template", f"the chat template ends no answer in {text!r:.200}")
            answers.append((begin, end))
        return text, answers

    def _plain(self, text: str) -> str:
        """Return a text with a mark in each control token that it says."""
        return self.control.sub(lambda found: f"{found[0][0]}{MARK}{found[0][1:]}", text.replace(MARK, ""))

    def _row(self, text: str, answers: Iterable[tuple[int, int]], encoded: Encoding) -> TokenizedRow:
        ids: list[int] = self._checked(text, encoded).ids
        is_target = [False] * len(ids)
        for begin, end in answers:
            first, last = _token_from(encoded, begin), _token_from(encoded, end)
            is_target[first : last + 1] = [True] * (last + 1 - first)
        return TokenizedRow(ids, is_target)

    def _checked(self, text: str, encoded: Encoding) -> Encoding:
        if MARK in text and sum(id_ in self.control_ids for id_ in encoded.ids) > len(self.control.findall(text)):
            raise BadRowError(
                "special_token",
                f"it says a special token, and this tokenizer cannot write it as plain text: {text!r:.200}",
            )
        return encoded


def layout_of(template: ChatTemplate, tokens: re.Pattern[str]) -> Layout:
    """Return how a template writes conversations.

    Args:
        template: The template.
        tokens: Matches the tokenizer's added tokens.

    Raises:
        DataError: It does not write turns that can be learned, neither with a system message nor without.
    """
    try:
        return _layout(template, tokens, has_system=True)
    except DataError:
        return _layout(template, tokens, has_system=False)


def _layout(template: ChatTemplate, tokens: re.Pattern[str], *, has_system: bool) -> Layout:
    messages = _messages(_PROBE, has_system=has_system)
    text = template.render(messages)
    places = [text.find(message["content"]) for message in messages]
    if -1 in places or places != sorted(places):
        raise DataError("the tokenizer's chat template does not write all turns in their order", _HINT)
    framing: set[str] = set()
    ends: set[str | None] = set()
    told = 0
    for place in _answers(messages):
        begin = _begin(template, messages, place, text)
        said = places[place] + len(messages[place]["content"])
        end = tokens.search(text, said, places[place + 1] if place + 1 < len(places) else len(text))
        ends.add(end[0] if end else None)
        framing |= set(tokens.findall(text, told, begin))
        told = end.end() if end else said
    end_of_turn = ends.pop()
    if ends or end_of_turn is None:
        raise DataError(
            "the tokenizer's chat template does not end each answer with the same special token, so a model could not "
            "learn to stop",
            _HINT,
        )
    return Layout(has_system, end_of_turn, frozenset(framing | set(tokens.findall(text, told)) | {end_of_turn}))


def _messages(conversation: Conversation, *, has_system: bool) -> list[Message]:
    turns = conversation.turns if has_system else conversation.folded
    system = conversation.system.strip() if has_system else ""
    messages = [{"role": _ROLES[turn.role], "content": turn.text.strip()} for turn in turns]
    return [{"role": "system", "content": system}, *messages] if system else [*messages]


def _answers(messages: Sequence[Message]) -> list[int]:
    return [place for place, message in enumerate(messages) if message["role"] == "assistant"]


def _begin(template: ChatTemplate, messages: Sequence[Message], place: int, text: str) -> int:
    """Return where in a conversation's text the answer at a place begins."""
    asked = template.render(messages[:place], asks=True)
    if not text.startswith(asked):
        raise DataError(
            "the tokenizer's chat template does not write a conversation as it began, so what is learned cannot be "
            f"told from what is asked: {asked[-100:]!r} does not precede the answer {messages[place]['content']!r:.60}",
            _HINT,
        )
    return len(asked)


def _token_from(encoded: Encoding, begin: int) -> int:
    """Return the token of a character, or of the first after it that the tokenizer does not drop."""
    return next(token for at in count(begin) if (token := encoded.char_to_token(at)) is not None)


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of texts without a mark, of which longer ones go before what they begin with."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})(?!{MARK})")


def _special_ids(control: Sequence[dict[str, Any]], template: ChatTemplate, end_of_turn: str) -> SpecialIds:
    ids: dict[str, int] = {token["content"]: token["id"] for token in control}
    named = {name: ids[text] for name, text in template.tokens.items() if text in ids}
    # Some models name no padding, and reserve tokens. The end token is no good one where there is another: a model
    # that begins from random weights would never learn what it means.
    spare = [number for text, number in ids.items() if re.search("pad|reserved", text, re.IGNORECASE)]
    eos = named.get("eos_token", ids[end_of_turn])
    return SpecialIds(
        pad=named.get("pad_token", spare[0] if spare else eos),
        eos=eos,
        end_of_turn=ids[end_of_turn],
        bos=named.get("bos_token"),
    )


def _without_marks(settings: dict[str, Any], control: Sequence[dict[str, Any]]) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, with a first normalizer that takes marks out of texts."""
    for token in control:
        token["normalized"] = False  # it is looked for before that
    first = {"type": "Replace", "pattern": {"String": MARK}, "content": ""}
    others = [settings["normalizer"]] if settings.get("normalizer") else []
    settings |= {
        "normalizer": {"type": "Sequence", "normalizers": [first, *others]},
        "truncation": None,
        "padding": None,
    }
    return Tokenizer.from_str(json.dumps(settings))
