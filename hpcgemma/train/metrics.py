"""What a training says of itself: metrics.jsonl, TensorBoard, events, and lines in the log of rank 0."""

from __future__ import annotations

import time
from typing import Any

from hpcgemma import files
from hpcgemma.runs.folder import EventName, RunFolder


def say(line: str) -> None:
    """Print a line at once, so that a killed rank leaves its last words."""
    print(line, flush=True)


def record(folder: RunFolder, event: EventName, **facts: Any) -> None:
    """Append an event; a full disk costs the event, not the training."""
    try:
        folder.record(event, **facts)
    except OSError as error:
        say(f"WARNING: the event {event!r} could not be recorded: {error}")


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

    def write(self, facts: dict[str, Any], board: dict[str, str]) -> None:
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
