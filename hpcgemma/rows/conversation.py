"""What a row means, whatever it looked like in its file: a conversation, or a document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a row: a file, or the file's content."""

    path: str | None = None
    """Absolute path."""
    content: bytes | None = None
    """An encoded image, such as PNG or JPEG, that was embedded in the row."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: Literal["user", "model"]
    text: str
    images: tuple[Image, ...] = ()
    """Images that go before the text; only a user shows any."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """User and model by turns, the user first, the model last."""

    turns: tuple[Turn, ...]
    system: str = ""
    """What the model is told before the first turn."""

    @property
    def folded(self) -> tuple[Turn, ...]:
        """The turns with the system text at the head of the first, for formats that know no system message."""
        if not self.system:
            return self.turns
        first, *others = self.turns
        return (Turn(first.role, f"{self.system.strip()}\n\n{first.text.strip()}", first.images), *others)

    @property
    def answer(self) -> str:
        """The last thing the model says."""
        return self.turns[-1].text


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text, every token of which is learned."""

    text: str


Content = Conversation | Document
