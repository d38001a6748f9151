"""How far generated answers agree with the true ones, in words and letters."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from typing import Any

_WORD = re.compile(r"[^\W_]+")
_ROUGE = ("rouge1", "rouge2", "rougeL")
_WITHOUT_ROUGE = "ROUGE: not computed, rouge-score not installed (pip install 'hpcgemma[evaluation]')"


class Words:
    """Words for ROUGE in any script; rouge-score's own splitting knows no letters beside a to z."""

    def tokenize(self, text: str) -> list[str]:
        """Return a text's words in lower case."""
        return _WORD.findall(text.lower())


def overlap(answers: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Return how far answers agree with the true ones, each in percent.

    Args:
        answers: The model's; at least one.
        references: The true ones, in the same order.

    Returns:
        ``bleu4`` and ``chrf``: of the whole corpus, by sacrebleu with its defaults (Post 2018; Popović 2015), and their
        signatures; ``rouge1``, ``rouge2``, ``rougeL``: F1, the mean over rows, without stemming (Lin 2004);
        ``exact_match``: how many are equal character by character; and ``notes``, sentences on what was not computed.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    bleu, chrf = BLEU(), CHRF()
    exact = sum(answer == reference for answer, reference in zip(answers, references, strict=True))
    found: dict[str, Any] = {
        "bleu4": round(bleu.corpus_score(list(answers), [list(references)]).score, 2),
        "chrf": round(chrf.corpus_score(list(answers), [list(references)]).score, 2),
    }
    has_rouge = importlib.util.find_spec("rouge_score") is not None
    return (
        found
        | (_rouge(answers, references) if has_rouge else {})
        | {
            "exact_match": round(100 * exact / len(answers), 2),
            "bleu_signature": str(bleu.get_signature()),
            "chrf_signature": str(chrf.get_signature()),
            "notes": [] if has_rouge else [_WITHOUT_ROUGE],
        }
    )


def _rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    rouge = RougeScorer(list(_ROUGE), tokenizer=Words())
    rows = [rouge.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {name: round(100 * sum(float(row[name].fmeasure) for row in rows) / len(rows), 2) for name in _ROUGE}
