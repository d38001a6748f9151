"""CLIPScore: whether a caption fits its drawing, with the drawing rendered.

100 x max(cos(image, text), 0) of CLIP's embeddings, the mean over rows, needing no true caption (Hessel et al. 2021,
CLIPScore, section 3; the factor is 100 as in torchmetrics, where the paper has 2.5).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from hpcgemma.train.data.tokenizer import first_line
from hpcgemma.train.scoring.drawing import images_of, svg_in

_ROWS_AT_ONCE = 32
_PACKAGES = {"resvg_py": "resvg-py", "PIL": "pillow"}
"""What renders drawings: modules, and the packages that they come in."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A CLIP model and what makes its inputs."""

    model: Any
    image_processor: Any
    tokenizer: Any
    device: torch.device

    @classmethod
    def load(cls, path: str, device: torch.device) -> Clip:
        """Load it from a folder or the local hub cache, never from the network.

        Raises:
            OSError: There is none.
            ValueError: It is no CLIP.
        """
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        model: Any = CLIPModel.from_pretrained(path, local_files_only=True, dtype=torch.float32)
        images: Any = CLIPImageProcessorPil  # the same with and without torchvision
        return cls(
            model.to(device).eval(),
            images.from_pretrained(path, local_files_only=True),
            AutoTokenizer.from_pretrained(path, local_files_only=True),
            device,
        )

    def scores(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
        """Return the CLIPScore of each image with its text, 0 to 100.

        Args:
            images: RGB images of Pillow.
            texts: As many; what is longer than CLIP reads is cut off.
        """
        found: list[float] = []
        longest = self.model.config.text_config.max_position_embeddings
        for start in range(0, len(texts), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            pixels_BCHW = self.image_processor(images=list(images[part]), return_tensors="pt")["pixel_values"]
            tokens = self.tokenizer(
                list(texts[part]), padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            with torch.no_grad():
                output = self.model(
                    input_ids=tokens["input_ids"].to(self.device),
                    attention_mask=tokens["attention_mask"].to(self.device),
                    pixel_values=pixels_BCHW.to(self.device),
                )
            cosine_B = functional.cosine_similarity(output.image_embeds.double(), output.text_embeds.double())
            found += (100 * cosine_B.clamp(min=0)).tolist()
        return found


def clip_score(
    answers: Sequence[str], prompts: Sequence[str], clip_model: str | None, device: torch.device
) -> dict[str, Any]:
    """Return the mean CLIPScore of captions whose prompts hold an SVG drawing.

    Args:
        answers: The model's captions.
        prompts: What was asked; those without a drawing are left out.
        clip_model: Folder or hub name of a CLIP; None: no score.
        device: What CLIP computes on.

    Returns:
        ``clip_score`` and ``clip_rows``, how many drawings it is of; and ``notes``, sentences on why there is no score
        or what could not be drawn. Nothing of all that where no prompt holds a drawing.
    """
    drawings = [(svg, answer) for prompt, answer in zip(prompts, answers, strict=True) if (svg := svg_in(prompt))]
    if not drawings or clip_model is None:
        return {"notes": []}
    missing = [package for name, package in _PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        return {
            "notes": [
                f"CLIP score: not computed, {' and '.join(missing)} not installed (pip install 'hpcgemma[evaluation]')"
            ]
        }
    try:
        clip = Clip.load(clip_model, device)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        why = f": {first_line(error)}" if Path(clip_model).is_dir() else ""
        return {
            "notes": [
                f"CLIP score: not computed, no CLIP at {clip_model!r}, neither as a folder nor in the hub cache "
                f"(hf download {clip_model}, or evaluation.clip_model){why}"
            ]
        }
    pairs = [
        (image, answer) for image, (_, answer) in zip(images_of([svg for svg, _ in drawings]), drawings, strict=True)
    ]
    seen = [(image, answer) for image, answer in pairs if image is not None]
    lost = len(pairs) - len(seen)
    notes = [f"CLIP score: {lost} of {len(pairs)} drawings could not be drawn and are left out"] if lost else []
    if not seen:
        return {"notes": notes}
    scores = clip.scores([image for image, _ in seen], [answer for _, answer in seen])
    return {"clip_score": round(sum(scores) / len(scores), 2), "clip_rows": len(seen), "notes": notes}
