"""The held-out loss: per learned token, over all ranks. Held-out rows are never packed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from hpcgemma.train.data.batches import collate
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.samples import learned_tokens
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.strategies import Inference


def held_out_loss(
    strategy: Inference,
    prepared: PreparedData,
    ranks: Ranks,
    device: torch.device,
    *,
    micro_batch: int,
    stop_is_agreed: Callable[[], bool],
    limit: int | None = None,
) -> float | None:
    """Return the mean cross-entropy of the held-out rows' learned tokens, or None where a stop came first.

    Rows are sorted by length and dealt out to the ranks in turn. A rank whose rows are used up waits with the others,
    so that all read the stop flag equally often; where weights are sharded it goes through the model with them too.

    Args:
        strategy: The model, spread over the ranks.
        prepared: The data.
        ranks: All ranks.
        device: What this rank computes on.
        micro_batch: Rows per rank and forward pass.
        stop_is_agreed: Asked before each forward pass; all ranks get the same answer.
        limit: Take the first so many held-out rows; None: all.
    """
    rows = prepared.eval
    count = len(rows) if limit is None else min(limit, len(rows))
    by_length = rows.longest(len(rows))
    by_length = by_length[by_length < count]
    mine = by_length[ranks.rank :: ranks.world_size]
    most = -(-count // ranks.world_size)
    total = torch.zeros((), dtype=torch.float64, device=device)
    strategy.model.eval()
    try:
        for start in range(0, most, micro_batch):
            if stop_is_agreed():
                return None
            chosen = mine[start : start + micro_batch]
            if not len(chosen) and not strategy.moves_together:
                continue
            batch = collate(rows, chosen if len(chosen) else by_length[-1:], prepared.special["pad"])
            with torch.no_grad():
                loss = strategy.evaluated(*strategy.shaped(batch).to(device))
            if len(chosen):
                total += loss.double()
    finally:
        strategy.model.train()
    (summed,) = ranks.sums([float(total)])
    return summed / int(learned_tokens(rows)[:count].sum())
