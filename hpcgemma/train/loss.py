"""The loss: cross-entropy summed over learned tokens, in fp32.

The sum, not the mean, is what ranks and micro-batches can add up: divided once by the learned tokens of the whole
global batch, it does not depend on how the rows were spread.

Letters: B rows, K positions, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from hpcgemma.train.data.batches import IGNORED, MicroBatch


def backward(loss: torch.Tensor) -> None:
    """Add the gradients of a loss to those of the trained parameters."""
    run: Callable[[], None] = loss.backward
    run()


def summed_loss(model: nn.Module, batch: MicroBatch) -> torch.Tensor:
    """Return the cross-entropy of a batch's learned tokens, summed, as a scalar.

    Logits are computed only at positions that predict a learned token: of a long drawing and its short caption, that
    is a small part of what the vocabulary would cost. The model itself applies its softcap.
    """
    logits_BKV = model(input_ids=batch.ids_BT, use_cache=False, logits_to_keep=batch.positions_K).logits
    return functional.cross_entropy(
        logits_BKV.float().flatten(0, 1), batch.labels_BK.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def seed_dropout(seed: int, step: int, place: int, rank: int) -> None:
    """Make the random numbers of one forward pass a pure function of its place in the training.

    So no random state need be saved, and neither an evaluation nor a resume can disturb it.

    Args:
        seed: The recipe's.
        step: Optimizer steps taken before.
        place: Which micro-batch of the step.
        rank: This rank.
    """
    mixed = 0
    for part in (seed, step, place, rank):
        mixed = (mixed * 1_000_003 + part + 1) % (1 << 63)
    torch.manual_seed(mixed)
