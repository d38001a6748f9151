"""Where a training stands: all that is saved besides weights and the optimizer's state."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from hpcgemma.recipes.types import EarlyStoppingSpec


@dataclass(slots=True)
class Progress:
    """The training's position and what the evaluations said so far."""

    step: int = 0
    """Optimizer steps taken."""
    samples: int = 0
    """Training rows consumed."""
    best_loss: float | None = None
    """Lowest held-out loss; None before the first evaluation."""
    best_step: int | None = None
    """The step it was measured at."""
    evaluations_without_fall: int = 0
    """Evaluations since the loss last fell by more than the threshold."""
    evaluated_step: int | None = None
    """The step of the last complete evaluation."""
    ended_early: bool = False
    """Whether early stopping ended the training."""

    def note_evaluation(self, loss: float, early_stopping: EarlyStoppingSpec | None) -> bool:
        """Take in the held-out loss of the present step and return whether it is the lowest so far."""
        self.evaluated_step = self.step
        before = math.inf if self.best_loss is None else self.best_loss
        threshold = early_stopping.threshold if early_stopping else 0.0
        self.evaluations_without_fall = 0 if loss < before - threshold else self.evaluations_without_fall + 1
        if early_stopping and self.evaluations_without_fall >= early_stopping.patience:
            self.ended_early = True
        if loss >= before:
            return False
        self.best_loss, self.best_step = loss, self.step
        return True

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Progress:
        """Read what ``to_json`` returned."""
        return cls(**content)
