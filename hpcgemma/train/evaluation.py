"""The held-out loss: per learned token, over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn

from hpcgemma.train.data.batches import collate
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.loss import summed_loss
from hpcgemma.train.ranks import Ranks


def held_out_loss(
    model: nn.Module,
    prepared: PreparedData,
    ranks: Ranks,
    device: torch.device,
    *,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
    stop_is_agreed: Callable[[], bool],
) -> float | None:
    """Return the mean cross-entropy of the held-out rows' learned tokens, or None where a stop came first.

    Rows are sorted by length and dealt out to the ranks in turn; a rank whose rows are used up waits with the others,
    so that all read the stop flag equally often.

    Args:
        model: The model itself, not what a strategy wrapped around it: ranks may have unequal work.
        prepared: The data.
        ranks: All ranks.
        device: What this rank computes on.
        micro_batch: Rows per rank and forward pass.
        autocast: The precision's context.
        stop_is_agreed: Asked before each forward pass; all ranks get the same answer.
    """
    rows = prepared.eval
    by_length = rows.longest(len(rows))
    mine = by_length[ranks.rank :: ranks.world_size]
    most = -(-len(rows) // ranks.world_size)
    total = torch.zeros((), dtype=torch.float64, device=device)
    model.eval()
    try:
        for start in range(0, most, micro_batch):
            if stop_is_agreed():
                return None
            chosen = mine[start : start + micro_batch]
            if not len(chosen):
                continue
            batch = collate(rows, chosen, prepared.special["pad"]).to(device)
            with torch.no_grad(), autocast():
                total += summed_loss(model, batch).double()
    finally:
        model.train()
    (summed,) = ranks.sums([float(total)])
    return summed / int(np.sum(rows.targets_N))
