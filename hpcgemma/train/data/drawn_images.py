"""The drawings of svg_captions as images of pixels. Needs Pillow."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from hpcgemma.train.data.svg_captions import SIDE, Drawing, Shape

if TYPE_CHECKING:
    from PIL import ImageDraw

_SCALE = 2
"""Pixels of an SVG unit."""


def png_of(drawing: Drawing) -> bytes:
    """Return a drawing on white, as PNG."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE * _SCALE, SIDE * _SCALE), "white")
    canvas = ImageDraw.Draw(image)
    for shape in drawing.shapes:
        _draw(canvas, shape)
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def _draw(canvas: ImageDraw.ImageDraw, shape: Shape) -> None:
    x, y, half = shape.x * _SCALE, shape.y * _SCALE, shape.half * _SCALE
    left, top, right, bottom = x - half, y - half, x + half, y + half
    if shape.name == "circle":
        canvas.ellipse((left, top, right, bottom), fill=shape.colour)
    elif shape.name == "ellipse":
        canvas.ellipse((left, y - half // 2, right, y + half // 2), fill=shape.colour)
    elif shape.name == "square":
        canvas.rectangle((left, top, right, bottom), fill=shape.colour)
    elif shape.name == "triangle":
        canvas.polygon(((x, top), (right, bottom), (left, bottom)), fill=shape.colour)
    else:
        canvas.line((left, y, right, y), fill=shape.colour, width=_SCALE)
