"""What a row means, whatever it looked like in its file: a conversation, or a document."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a row: a file, or the file's content."""

    path: str | None = None
    """Absolute path."""
    content: bytes | None = None
    """An encoded image, such as PNG or JPEG, that was embedded in the row."""
    at: int = 0
    """Where in the text of its turn it is shown: so many characters stand before it."""
    digest: bytes = b""
    """Hash of its content, once that was read."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: Literal["user", "model"]
    text: str
    images: tuple[Image, ...] = ()
    """Images in the text, in their order; only a user shows any. A text with images has no space at its ends."""

    @property
    def pieces(self) -> tuple[str, ...]:
        """The text before the first image, between each two, and after the last; without images the whole text."""
        cuts = (0, *(image.at for image in self.images), len(self.text))
        return tuple(self.text[begin:end] for begin, end in pairwise(cuts))


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
        before = f"{self.system.strip()}\n\n"
        images = tuple(replace(image, at=image.at + len(before)) for image in first.images)
        return (Turn(first.role, before + first.text.strip(), images), *others)

    @property
    def images(self) -> tuple[Image, ...]:
        """All images, in their order."""
        return tuple(image for turn in self.turns for image in turn.images)

    @property
    def answer(self) -> str:
        """The last thing the model says."""
        return self.turns[-1].text


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text, every token of which is learned."""

    text: str


Content = Conversation | Document
