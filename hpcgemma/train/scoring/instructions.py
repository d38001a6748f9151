"""Whether answers are what was asked for in form: their format, their length, their language.

These are checks that can be verified without a judge, in the spirit of IFEval (Zhou et al. 2023); what is asked for is
read off the true answer.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from hpcgemma.recipes.types import GenerationSpec

SHORTEST_LETTERS = 20
"""A text with fewer letters has no language that could be told."""

SUREST = 0.9
"""The probability of the true answer's language below which a row is left out."""

_FEWEST, _MOST = 0.5, 2.0
"""Words of an answer, as a share of the true one's."""

_MARKUP = re.compile(
    r"<(?:start_of_turn|end_of_turn|bos|eos|pad|unk|turn|/?s)>|<\|[a-z_]+\|?>|\[/?INST\]"
    r"|^(?:user|model|assistant)\s*\n",
    re.IGNORECASE,
)


def instruction_following(answers: Sequence[str], references: Sequence[str], spec: GenerationSpec) -> dict[str, Any]:
    """Return the percentage of answers that pass each check, and their mean.

    Args:
        answers: The model's; at least one.
        references: The true ones, in the same order.
        spec: Fewest and most words, where the recipe says so.

    Returns:
        ``instruction_following``: the mean of the checks; ``instruction_checks``: ``format`` (not empty, no token or
        name of a turn left in it, JSON where the true answer is), ``length`` (between half and twice the true answer's
        words, or what the recipe says), ``language`` (that of the true answer; not there where no true answer is long
        enough to tell, ``SHORTEST_LETTERS``); and ``notes``, sentences on what could not be checked.
    """
    pairs = list(zip(answers, references, strict=True))
    checks = {
        "format": _percent([has_format(answer, reference) for answer, reference in pairs]),
        "length": _percent(
            [has_length(answer, reference, spec.min_words, spec.max_words) for answer, reference in pairs]
        ),
    }
    notes = []
    if importlib.util.find_spec("py3langid") is None:
        notes.append(
            "language: not checked, the package py3langid is not installed (pip install 'hpcgemma[evaluation]')"
        )
    else:
        spoken = [speaks_alike(answer, reference) for answer, reference in pairs]
        told = [each for each in spoken if each is not None]
        if told:
            checks["language"] = _percent(told)
        else:
            notes.append("language: not checked, the true answers are too short to tell theirs")
    mean = round(sum(checks.values()) / len(checks), 2)
    return {"instruction_following": mean, "instruction_checks": checks, "notes": notes}


def has_format(answer: str, reference: str) -> bool:
    """Whether an answer is not empty, has no markup of turns that the true one has not, and is JSON where that is."""
    if not answer.strip():
        return False
    if _MARKUP.search(answer) and not _MARKUP.search(reference):
        return False
    return _is_json(answer) or not _is_json(reference)


def has_length(answer: str, reference: str, min_words: int | None, max_words: int | None) -> bool:
    """Whether an answer has as many words as it should; None: half to twice as many as the true one.

    Where a script has no spaces, letters count.
    """
    words = len(answer.split())
    if (min_words is not None and words < min_words) or (max_words is not None and words > max_words):
        return False
    in_words = len(reference.split()) > 1 or len(reference) <= SHORTEST_LETTERS
    expected, length = _length(reference, in_words=in_words), _length(answer, in_words=in_words)
    is_long_enough = min_words is not None or length >= math.floor(_FEWEST * expected)
    return is_long_enough and (max_words is not None or length <= math.ceil(_MOST * expected))


def speaks_alike(answer: str, reference: str) -> bool | None:
    """Whether an answer is in the true one's language; None where that one's cannot be told."""
    if _letters(reference) < SHORTEST_LETTERS:
        return None
    language, probability = language_of(reference)
    if probability < SUREST:
        return None
    return language_of(answer)[0] == language


def language_of(text: str) -> tuple[str, float]:
    """Return a text's language as a code of ISO 639, and how sure that is, 0 to 1 (langid, Lui and Baldwin 2012)."""
    from py3langid import langid

    ranked: list[tuple[str, float]] = langid.rank(text)
    highest = ranked[0][1]
    return ranked[0][0], 1 / sum(math.exp(score - highest) for _, score in ranked)


def _length(text: str, *, in_words: bool) -> int:
    return len(text.split()) if in_words else _letters(text)


def _letters(text: str) -> int:
    return sum(letter.isalpha() for letter in text)


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object or list; a number or a word alone is not meant as JSON."""
    if not text.strip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _percent(passed: Sequence[bool]) -> float:
    return round(100 * sum(passed) / len(passed), 2)
