"""What a training says of itself: metrics.jsonl, TensorBoard, events, and lines in the log of rank 0."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hpcgemma import files
from hpcgemma.runs.folder import RunFolder


def say(line: str) -> None:
    """Print a line at once, so that a killed rank leaves its last words."""
    print(line, flush=True)


def peak_memory_gib(device: torch.device) -> float | None:
    """Return the most memory that torch has had of a GPU so far; None for another device."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_reserved(device) / 2**30, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetrics:
    """A line of metrics.jsonl: one optimizer step over all ranks."""

    step: int
    total_steps: int
    samples: int
    """Training rows consumed so far."""
    epoch: float
    """Passes over the training rows so far."""
    loss: float
    """Cross-entropy per learned token."""
    learning_rate: float
    grad_norm: float
    """Norm of the gradient before clipping."""
    tokens: int
    """Tokens of the step's rows."""
    target_tokens: int
    """Tokens among them that are learned."""
    tokens_per_s: float
    """Since the last line, over all ranks."""
    peak_memory_gib: float | None
    """Most memory that torch had of rank 0's GPU so far; None without a GPU."""


_STEP_TAGS = {name: f"train/{name}" for name in ("loss", "learning_rate", "grad_norm", "tokens_per_s")}


class MetricsLog:
    """metrics.jsonl and TensorBoard. A full disk costs lines, not the training.

    Args:
        folder: The run folder.
        attempt: Which launch of the run it is.
        tensorboard: Whether TensorBoard files are written too.
        step: Steps taken so far; TensorBoard forgets what an earlier attempt said of later ones.
    """

    def __init__(self, folder: RunFolder, attempt: int, *, tensorboard: bool, step: int) -> None:
        self._folder, self._attempt = folder, attempt
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder.tensorboard_dir), purge_step=step + 1)

    def write_step(self, metrics: StepMetrics) -> None:
        """Append a step's line, and print it."""
        self._write(asdict(metrics), _STEP_TAGS)
        say(
            f"step {metrics.step:>6}/{metrics.total_steps} | loss {metrics.loss:.4f} | learning rate "
            f"{metrics.learning_rate:.2e} | norm {metrics.grad_norm:.3f} | {metrics.tokens_per_s:,.0f} tokens/s"
            + ("" if metrics.peak_memory_gib is None else f" | peak {metrics.peak_memory_gib:.1f} GiB")
        )

    def write_evaluation(self, step: int, samples: int, loss: float) -> None:
        """Append the line of an evaluation: the held-out loss per learned token."""
        self._write({"step": step, "samples": samples, "eval_loss": loss}, {"eval_loss": "eval/loss"})

    def write_scores(self, step: int, samples: int, scores: Mapping[str, float]) -> None:
        """Append the line of generated answers: what they score, by metric."""
        self._write({"step": step, "samples": samples, **scores}, {name: f"eval/{name}" for name in scores})

    def write_monitors(self, step: int, samples: int, numbers: Mapping[str, float]) -> None:
        """Append the line of the monitors: what they measured, by name."""
        self._write({"step": step, "samples": samples, **numbers}, {name: name for name in numbers})

    def _write(self, facts: dict[str, Any], board: dict[str, str]) -> None:
        """Append a line of metrics.

        Args:
            facts: The line; ``step`` is among them. Time and attempt are added.
            board: For TensorBoard: the tag of each fact shown there.
        """
        try:
            line = facts | {"time": time.time(), "attempt": self._attempt}
            files.append_json_line(self._folder.metrics_file, line)
            for fact, tag in board.items():
                if self._board is not None:
                    self._board.add_scalar(tag, facts[fact], facts["step"])
        except OSError as error:
            say(f"WARNING: metrics of step {facts['step']} could not be written: {error}")

    def close(self) -> None:
        """Write what TensorBoard still holds."""
        if self._board is not None:
            self._board.close()
