"""Rows with images that the tests draw, and a recipe of a tiny Gemma 3 that sees them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.train.models import VISION_SHAPES

SIDE = 28
TOKENS = 4
"""Tokens that stand for an image."""

MODEL: dict[str, Any] = {**VISION_SHAPES["gemma3"], "mm_tokens_per_image": TOKENS}

SEES: dict[str, Any] = {
    "model.kind": "vision",
    "model.config": MODEL,
    "data.generator": None,
    "data.format": "auto",
    "data.num_workers": 0,
    "training.max_steps": 4,
    "training.global_batch": 8,
    "training.micro_batch": 2,
    "training.eval_micro_batch": 2,
    "evaluation.every_steps": 2,
    "checkpoint.every_steps": 2,
}
"""What makes the tests' tiny recipe one of images; ``data.train`` is missing."""


def draw(seed: int, kind: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """Return an encoded image of random pixels."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind)
    return encoded.getvalue()


def caption_rows(folder: Path, count: int, suffix: str = ".png") -> list[dict[str, Any]]:
    """Draw images into a folder and return a row that captions each."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        name = f"images/{number}{suffix}"
        (folder / name).write_bytes(draw(number, "JPEG" if suffix == ".jpg" else "PNG"))
        rows.append({"image": name, "caption": f"drawing number {number} of {'many ' * (number % 5)}"})
    return rows


def mixed_rows(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return conversations: every third shows no image, some show two, some one after a text."""
    captions = caption_rows(folder, count)
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(captions):
        image = {"type": "image", "path": row["image"]}
        asked = {"type": "text", "text": f"What is {number}? " + "Look! " * (number % 4)}
        content: Any = [[image, asked], asked["text"], [asked, image, {"type": "text", "text": "Well?"}]][number % 3]
        if number % 6 == 0:
            content = [image, {"type": "image", "path": captions[-1]["image"]}, asked]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": row["caption"]}]
        rows.append({"messages": messages})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows as JSON lines and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
