"""Where a training stands: all that is saved besides weights and the optimizer's state."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from hpcgemma.recipes.types import EarlyStoppingSpec


@dataclass(slots=True)
class Progress:
    """The training's position and what the evaluations said so far."""

    step: int = 0
    """Optimizer steps taken."""
    samples: int = 0
    """Training rows consumed."""
    best: list[tuple[float, int]] = field(default_factory=list)
    """The lowest held-out losses, lowest first, and the steps they were measured at."""
    evaluations_without_fall: int = 0
    """Evaluations since the loss last fell by more than the threshold."""
    evaluated_step: int | None = None
    """The step of the last complete evaluation."""
    ended_early: bool = False
    """Whether early stopping ended the training."""

    @property
    def best_step(self) -> int | None:
        """The step of the lowest held-out loss; None before the first evaluation."""
        return self.best[0][1] if self.best else None

    def note_evaluation(self, loss: float, early_stopping: EarlyStoppingSpec | None, *, keep: int) -> int | None:
        """Take in the held-out loss of the present step.

        Args:
            loss: The loss.
            early_stopping: When to give up.
            keep: How many of the lowest losses count.

        Returns:
            Its place among the lowest ``keep``, 0 for the lowest of all; None where it is not among them.
        """
        self.evaluated_step = self.step
        before = self.best[0][0] if self.best else math.inf
        threshold = early_stopping.threshold if early_stopping else 0.0
        self.evaluations_without_fall = 0 if loss < before - threshold else self.evaluations_without_fall + 1
        if early_stopping and self.evaluations_without_fall >= early_stopping.patience:
            self.ended_early = True
        place = sum(other <= loss for other, _ in self.best)
        self.best = [*self.best[:place], (loss, self.step), *self.best[place:]][:keep]
        return place if place < keep else None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Progress:
        """Read what ``to_json`` returned."""
        best = [(float(loss), int(step)) for loss, step in content["best"]]
        return cls(**content | {"best": best})
