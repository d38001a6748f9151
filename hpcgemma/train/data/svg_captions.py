"""Drawings of a few shapes, with captions that are true: a data set made on the spot.

Pure Python and the same on every machine: numbers come from SHA-256, not from a library's random generator, whose
stream may change with its version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

SIDE = 90
"""Width and height of a drawing, in SVG units."""

COLOURS = ("red", "blue", "green", "black", "pink")
SIZES = {"small": 4, "large": 10}
"""Half the width of a shape, in SVG units."""
SHAPES = ("circle", "square", "triangle", "ellipse", "line")
PLACES = {
    "at the top left": (15, 15),
    "at the top": (45, 15),
    "at the top right": (75, 15),
    "on the left": (15, 45),
    "in the centre": (45, 45),
    "on the right": (75, 45),
    "at the bottom left": (15, 75),
    "at the bottom": (45, 75),
    "at the bottom right": (75, 75),
}
"""Where a group of shapes is, and its centre."""
_WIDE_PLACES = ("at the top", "in the centre", "at the bottom")  # where several shapes in a row fit in

_COUNTS = ("a", "two", "three")


@dataclass(frozen=True, slots=True)
class Group:
    """One to three equal shapes, one beside the other."""

    count: int
    size: str
    colour: str
    shape: str
    place: str

    @property
    def caption(self) -> str:
        """The group in words, such as "two small red circles at the top"."""
        plural = "s" if self.count > 1 else ""
        return f"{_COUNTS[self.count - 1]} {self.size} {self.colour} {self.shape}{plural} {self.place}"


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of a drawing, centred on (x, y) and ``half`` wide to each side, in SVG units."""

    name: str
    x: int
    y: int
    half: int
    colour: str

    @property
    def svg(self) -> str:
        """The shape as an SVG element."""
        x, y, half, fill = self.x, self.y, self.half, f'fill="{self.colour}"/>'
        if self.name == "circle":
            return f'<circle cx="{x}" cy="{y}" r="{half}" {fill}'
        if self.name == "ellipse":
            return f'<ellipse cx="{x}" cy="{y}" rx="{half}" ry="{half // 2}" {fill}'
        if self.name == "square":
            return f'<rect x="{x - half}" y="{y - half}" width="{2 * half}" height="{2 * half}" {fill}'
        if self.name == "triangle":
            return f'<path d="M{x} {y - half}L{x + half} {y + half}L{x - half} {y + half}z" {fill}'
        return f'<path d="M{x - half} {y}h{2 * half}" stroke="{self.colour}"/>'


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawing and its caption."""

    shapes: tuple[Shape, ...]
    caption: str

    @property
    def svg(self) -> str:
        """The drawing as SVG."""
        return f'<svg viewBox="0 0 {SIDE} {SIDE}">{"".join(shape.svg for shape in self.shapes)}</svg>'


class Dice:
    """A stream of numbers that is a pure function of its seed, on every machine and version.

    Args:
        seed: Any text.
    """

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._count = 0

    def below(self, limit: int) -> int:
        """Return the next number, from 0 to below the limit."""
        digest = hashlib.sha256(f"{self._seed}/{self._count}".encode()).digest()
        self._count += 1
        return int.from_bytes(digest[:8], "big") % limit


def draw_rows(train_rows: int, eval_rows: int, seed: int) -> tuple[list[Drawing], list[Drawing]]:
    """Return training and held-out drawings; no held-out drawing is among the training drawings.

    Args:
        train_rows: Training drawings.
        eval_rows: Held-out drawings, which differ among themselves too.
        seed: Another seed draws others.
    """
    held_out: dict[str, Drawing] = {}
    stream = _drawings(seed)
    while len(held_out) < eval_rows:
        drawing = next(stream)
        held_out.setdefault(drawing.svg, drawing)
    train: list[Drawing] = []
    while len(train) < train_rows:
        drawing = next(stream)
        if drawing.svg not in held_out:
            train.append(drawing)
    return train, list(held_out.values())


def _drawings(seed: int) -> Iterator[Drawing]:
    number = 0
    while True:
        yield _draw(Dice(f"svg_captions/{seed}/{number}"))
        number += 1


def _draw(dice: Dice) -> Drawing:
    places = list(PLACES)
    groups: list[Group] = []
    shapes_left = 3
    for _ in range(1 + dice.below(2)):
        # One shape is as likely as several: counting must be learned, but not from every row.
        count = 1 if dice.below(2) else 1 + dice.below(min(shapes_left - 1, 2) + 1)
        fitting = [place for place in places if count == 1 or place in _WIDE_PLACES]
        place = fitting[dice.below(len(fitting))]
        places.remove(place)
        groups.append(
            Group(
                count=count,
                size=list(SIZES)[dice.below(len(SIZES))],
                colour=COLOURS[dice.below(len(COLOURS))],
                shape=SHAPES[dice.below(len(SHAPES))],
                place=place,
            )
        )
        shapes_left -= count
        if not shapes_left:
            break
    return Drawing(
        shapes=tuple(shape for group in groups for shape in _shapes_of(group, dice)),
        caption=" and ".join(group.caption for group in groups),
    )


def _shapes_of(group: Group, dice: Dice) -> list[Shape]:
    half = SIZES[group.size] + dice.below(3)
    centre_x, centre_y = (place + dice.below(5) - 2 for place in PLACES[group.place])
    step = 2 * half + 1
    first_x = centre_x - step * (group.count - 1) // 2
    return [Shape(group.shape, first_x + step * index, centre_y, half, group.colour) for index in range(group.count)]
