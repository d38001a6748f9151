"""The drawings are the same everywhere, their captions are true, and none is held out and trained on."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hpcgemma.train.data.svg_captions import SIDE, draw_rows

FIRST_SVG = '<svg viewBox="0 0 90 90"><ellipse cx="15" cy="45" rx="10" ry="5" fill="red"/></svg>'
FIRST_CAPTION = "a large red ellipse on the left"


def test_no_held_out_drawing_is_trained_on() -> None:
    train, held_out = draw_rows(500, 60, 0)
    assert (len(train), len(held_out)) == (500, 60)
    assert not {each.svg for each in train} & {each.svg for each in held_out}
    assert len({each.svg for each in held_out}) == 60


def test_the_drawings_are_the_same_on_every_machine() -> None:
    (first, *_), _ = draw_rows(1, 1, 0)
    assert first.svg == FIRST_SVG
    assert first.caption == FIRST_CAPTION
    assert draw_rows(5, 5, 0) == draw_rows(5, 5, 0)
    assert draw_rows(5, 5, 0) != draw_rows(5, 5, 1)


def test_a_caption_counts_the_shapes_and_names_their_colours() -> None:
    numbers = {"a": 1, "two": 2, "three": 3}
    tags = {"circle": "circle", "ellipse": "ellipse", "square": "rect", "triangle": "path", "line": "path"}
    for drawing in draw_rows(300, 1, 1)[0]:
        drawn = [(each.tag, each.get("fill") or each.get("stroke")) for each in ElementTree.fromstring(drawing.svg)]
        told = []
        for group in drawing.caption.split(" and "):
            count, _size, colour, shape, *_ = group.split()
            told += [(tags[shape.removesuffix("s")], colour)] * numbers[count]
        assert drawn == told


def test_every_shape_lies_inside_the_drawing() -> None:
    for drawing in draw_rows(300, 1, 2)[0]:
        inside = drawing.svg.partition(">")[2]
        for number in re.findall(r"-?\d+", inside):
            assert 0 <= int(number) <= SIDE
