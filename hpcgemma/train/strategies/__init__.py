"""How a training is spread over ranks: one file per strategy."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import nn


class Strategy(Protocol):
    """What the loop asks of a strategy."""

    model: nn.Module
    """What a forward pass of the training goes through."""

    def adding_up(self) -> AbstractContextManager[object]:
        """Return a context in which gradients are only added up on this rank, not exchanged."""

    def gradient_norm(self, limit: float | None) -> torch.Tensor:
        """Clip the gradients to a norm (None clips nothing) and return the norm they had, over all ranks."""
