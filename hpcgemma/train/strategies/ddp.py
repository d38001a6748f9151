"""Distributed data parallel: a whole copy of the model on each rank, gradients averaged. Through accelerate."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator
from torch import nn


class DataParallel:
    """A model on each rank, through accelerate; with one rank, the model itself.

    The process group must exist: accelerate takes the one it finds.

    Args:
        model: The model, on this rank's device.
        device: That device.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
        self.model: nn.Module = self._accelerator.prepare_model(model, device_placement=False)
        self._trainable = [each for each in model.parameters() if each.requires_grad]

    def adding_up(self) -> AbstractContextManager[object]:
        """Return a context in which gradients are only added up on this rank, not exchanged."""
        context: AbstractContextManager[object] = self._accelerator.no_sync(self.model)
        return context

    def gradient_norm(self, limit: float | None) -> torch.Tensor:
        """Clip the gradients to a norm (None clips nothing) and return the norm they had."""
        norm: torch.Tensor = self._accelerator.clip_grad_norm_(
            self._trainable, float("inf") if limit is None else limit
        )
        return norm
