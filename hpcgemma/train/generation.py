"""Answers generated for held-out rows, before and after the training, and their scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from hpcgemma import files
from hpcgemma.recipes.types import GenerationSpec
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.strategies import Strategy

EXAMPLES = 5
"""Answers shown in the evaluation file."""


def answers(
    strategy: Strategy,
    prepared: PreparedData,
    ranks: Ranks,
    device: torch.device,
    spec: GenerationSpec,
    *,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
    stop_is_agreed: Callable[[], bool],
) -> list[str] | None:
    """Return greedy answers for the first held-out rows, in their order, or None where a stop came first.

    Args:
        strategy: The model, spread over the ranks.
        prepared: The data.
        ranks: All ranks; the rows are spread over them.
        device: What this rank computes on.
        spec: How many rows, how many tokens.
        micro_batch: Rows per rank that are answered at once.
        autocast: The precision's context.
        stop_is_agreed: Asked before each batch; all ranks get the same answer.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(prepared.tokenizer_dir), local_files_only=True)
    count = min(spec.rows, len(prepared.eval))
    mine = list(range(count))[ranks.rank :: ranks.world_size]
    most = -(-count // ranks.world_size)
    found: dict[int, str] = {}
    strategy.model.eval()
    try:
        for start in range(0, most, micro_batch):
            if stop_is_agreed():
                return None
            chosen = mine[start : start + micro_batch]
            if not chosen and not strategy.moves_together:
                continue
            with torch.no_grad(), autocast(), strategy.generating():
                texts = _answer(strategy, tokenizer, prepared, chosen or [0], device, spec.max_new_tokens)
            found |= dict(zip(chosen, texts, strict=False))
    finally:
        strategy.model.train()
    together: dict[int, str] = {}
    for part in ranks.collect(found):
        together |= part
    return [together[row] for row in range(count)]


def score(given: list[str], questions: list[tuple[str, str]]) -> dict[str, Any]:
    """Compare answers with the true ones.

    Args:
        given: The model's answers.
        questions: For each, what was asked and the true answer.

    Returns:
        ``bleu4``: corpus BLEU by sacrebleu with its defaults, 0 to 100 (Post 2018); ``exact_match``: percent of
        answers equal to the true ones; ``rows``; and a few ``examples``.
    """
    from sacrebleu.metrics.bleu import BLEU

    references = [reference for _, reference in questions]
    bleu = BLEU()
    exact = sum(answer == reference for answer, reference in zip(given, references, strict=True))
    return {
        "bleu4": round(bleu.corpus_score(given, [references]).score, 2),
        "exact_match": round(100 * exact / len(given), 2),
        "rows": len(given),
        "bleu_signature": str(bleu.get_signature()),
        "examples": [
            {"prompt": prompt, "reference": reference, "answer": answer}
            for (prompt, reference), answer in zip(questions[:EXAMPLES], given[:EXAMPLES], strict=True)
        ],
    }


def read_scores(folder: RunFolder) -> dict[str, Any]:
    """Return the scores written so far."""
    try:
        scores: dict[str, Any] = json.loads(folder.evaluation_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return scores


def write_scores(folder: RunFolder, when: str, scores: dict[str, Any]) -> None:
    """Add scores to the evaluation file, under ``untrained`` or ``trained``."""
    content = read_scores(folder) | {when: scores}
    files.write_atomically(folder.evaluation_file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _answer(
    strategy: Strategy,
    tokenizer: Any,
    prepared: PreparedData,
    rows: list[int],
    device: torch.device,
    max_new_tokens: int,
) -> list[str]:
    """Answer rows at once, padded on the left so that all answers begin at the same place."""
    special = prepared.special
    prompts = [prepared.eval.prompt(row) for row in rows]
    width = max(map(len, prompts))
    ids_BT = np.full((len(rows), width), special["pad"], np.int64)
    mask_BT = np.zeros((len(rows), width), np.int64)
    for place, prompt in enumerate(prompts):
        ids_BT[place, width - len(prompt) :] = prompt
        mask_BT[place, width - len(prompt) :] = 1
    generate: Any = strategy.model.generate
    output_BT = generate(
        input_ids=torch.from_numpy(ids_BT).to(device),
        attention_mask=torch.from_numpy(mask_BT).to(device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        synced_gpus=strategy.moves_together,  # all go on until the last one has its answer
        pad_token_id=special["pad"],
        eos_token_id=prepared.stop_ids,
    )
    # Not every tokenizer marks what ends its turns as special, and then would not skip it.
    ends = set(prepared.stop_ids)
    answers_BT = [[number for number in answer if number not in ends] for answer in output_BT[:, width:].tolist()]
    texts = tokenizer.batch_decode(answers_BT, skip_special_tokens=True)
    return [text.strip() for text in texts]
