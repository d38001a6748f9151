"""Scores of generated answers: one file per family of metrics, and this entry to all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from hpcgemma.recipes.types import EvaluationSpec, GenerationSpec
from hpcgemma.train.scoring.clip import clip_score
from hpcgemma.train.scoring.instructions import instruction_following
from hpcgemma.train.scoring.overlap import overlap

EXAMPLES = 5
"""Answers shown in the evaluation file."""


def score(
    answers: Sequence[str],
    references: Sequence[str],
    prompts: Sequence[str],
    spec: EvaluationSpec,
    device: torch.device,
) -> dict[str, Any]:
    """Score answers by all that can be measured of them.

    Args:
        answers: The model's; at least one.
        references: The true ones, in the same order.
        prompts: What was asked, in the same order.
        spec: CLIP's place, limits of length.
        device: What CLIP computes on.

    Returns:
        The metrics of ``overlap``, ``instruction_following`` and ``clip_score``; ``rows``; ``notes``, sentences on what
        could not be measured; and a few ``examples``.
    """
    asked = spec.generation or GenerationSpec()
    notes: list[str] = []
    found: dict[str, Any] = {"rows": len(answers)}
    for part in (
        overlap(answers, references),
        instruction_following(answers, references, asked),
        clip_score(answers, prompts, spec.clip_model, device),
    ):
        notes += part.pop("notes")
        found |= part
    return found | {
        "notes": notes,
        "examples": [
            {"prompt": prompt, "reference": reference, "answer": answer}
            for prompt, reference, answer in list(zip(prompts, references, answers, strict=True))[:EXAMPLES]
        ],
    }


def perplexity(loss: float) -> float:
    """Return exp(loss), of a loss per learned token; infinite where that is too large for a number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def numbers_of(scores: dict[str, Any]) -> dict[str, float]:
    """Return the metrics among scores, without what describes them."""
    from hpcgemma.recipes.metrics import METRICS

    return {name: float(scores[name]) for name in METRICS if scores.get(name) is not None}
