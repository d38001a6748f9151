"""What a model is judged by: the names that `evaluation.targets` knows."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

METRICS: dict[str, str] = {
    "eval_loss": "cross-entropy per learned token of the held-out rows; lower is better",
    "perplexity": "exp(eval_loss); lower is better",
    "bleu4": "corpus BLEU-4, 0 to 100 (Papineni et al. 2002; sacrebleu, Post 2018)",
    "chrf": "corpus chrF, 0 to 100 (Popović 2015; sacrebleu)",
    "rouge1": "ROUGE-1, F1 in percent (Lin 2004)",
    "rouge2": "ROUGE-2, F1 in percent (Lin 2004)",
    "rougeL": "ROUGE-L, F1 in percent (Lin 2004)",
    "exact_match": "percent of answers that are the true one, character by character",
    "clip_score": "CLIPScore of captions with the drawing rendered, 0 to 100 (Hessel et al. 2021)",
    "instruction_following": "mean of the checks of format, length and language, in percent",
}
"""Names of the metrics, each with what it is."""

OF_LOSS = frozenset({"eval_loss", "perplexity"})
"""Those that need no generated answers."""


def check_metric_names(names: Mapping[str, Any]) -> None:
    """Refuse names that are no metric.

    Raises:
        ValueError: One is none; it says which one was perhaps meant, and which are valid.
    """
    for name in names:
        if name not in METRICS:
            close = difflib.get_close_matches(name, METRICS, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ";"
            raise ValueError(f"there is no metric {name!r}{meant} valid: {', '.join(METRICS)}")
