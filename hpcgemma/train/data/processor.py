"""A vision model's processor: how many tokens stand for an image, and how an image becomes pixels.

It lies in the tokenizer's folder, where AutoProcessor of transformers finds it beside the finished model too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import Recipe
from hpcgemma.train.data.prompts import CHAT_TEMPLATE
from hpcgemma.train.data.tokenizer import first_line

PROCESSOR_NAME = "processor_config.json"
PROCESSORS = ("Gemma3Processor",)
"""Whose images are trained on; what others make of an image, their models must be told in another way."""

_GEMMA_3 = {"tokens": 256, "side": 896}
"""Of google/gemma-3-4b-it, where a random start says nothing else."""


def write_processor(recipe: Recipe, folder: Path) -> None:
    """Write the processor of a recipe's model into the folder of its tokenizer.

    Raises:
        InputError: There is none, or it is of a model whose images are not trained on.
    """
    if recipe.model.path is None:
        settings = _random(recipe.model.config)
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")  # where processors look for it
    else:
        settings = _pretrained(recipe, recipe.model.path)
    (folder / PROCESSOR_NAME).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def image_tokens(folder: Path) -> int | None:
    """Return how many tokens stand for an image; None where the folder has no processor, or another kind of one."""
    try:
        settings = json.loads((folder / PROCESSOR_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if settings.get("processor_class") not in PROCESSORS:
        return None
    return int(settings.get("image_seq_length", _GEMMA_3["tokens"]))


def _random(config: Mapping[str, Any]) -> dict[str, Any]:
    side = config.get("vision_config", {}).get("image_size", _GEMMA_3["side"])
    return {
        "processor_class": PROCESSORS[0],
        "image_seq_length": config.get("mm_tokens_per_image", _GEMMA_3["tokens"]),
        "image_processor": {
            "image_processor_type": "Gemma3ImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"height": side, "width": side},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    }


def _pretrained(recipe: Recipe, path: str) -> dict[str, Any]:
    from transformers import AutoProcessor

    try:
        make: Any = AutoProcessor
        processor = make.from_pretrained(path, revision=recipe.model.revision, local_files_only=True)
        name = type(processor).__name__
        if name not in PROCESSORS:
            raise InputError(
                f"images are trained on for Gemma 3, and the processor of {path!r} is a {name}",
                "--set model.path to a Gemma 3 with a vision tower, or rows without images",
            )
        settings: dict[str, Any] = json.loads(processor.to_json_string())
    except (OSError, ValueError, ImportError) as error:
        raise InputError(
            f"no image processor at {path!r}, neither in the folder nor in the hub cache: {first_line(error)}",
            f"hf download {path}  (on a node with internet); rows with images need preprocessor_config.json",
        ) from None
    if settings["image_processor"].get("do_pan_and_scan"):
        raise InputError(
            f"the image processor of {path!r} cuts images into crops (do_pan_and_scan), which is not trained here",
            "set do_pan_and_scan to false in its preprocessor_config.json",
        )
    return settings
