"""Saving and resuming: rank 0 writes and judges, all ranks go the same way.

What is saved is what cannot be computed: trained weights, the optimizer's state, and the position. Row order,
learning rate and dropout are pure functions of seed and step, so a resumed training repeats the uninterrupted one
bit by bit.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hpcgemma import checkpoints
from hpcgemma.checkpoints import Checkpoint
from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.failures import DISK_ERRNOS, DiskError
from hpcgemma.train.metrics import say
from hpcgemma.train.progress import Progress
from hpcgemma.train.ranks import Ranks

WEIGHTS_NAME = "model.safetensors"
OPTIMIZER_NAME = "optimizer.pt"
STATE_NAME = "trainer_state.json"


class Checkpointing:
    """The checkpoints of one run, as the trainer writes and reads them.

    Args:
        folder: The run folder.
        ranks: All ranks.
        model: Its trainable parameters are what is saved; the model itself, not what a strategy wrapped around it.
        optimizer: Its state is saved.
        run_id: Identity of the run.
        recipe_fingerprint: A checkpoint under another one is refused.
        data_fingerprint: Likewise.
        keep: Newest checkpoints kept, beside the best.
    """

    def __init__(
        self,
        folder: RunFolder,
        ranks: Ranks,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        run_id: str,
        recipe_fingerprint: str,
        data_fingerprint: str,
        keep: int,
    ) -> None:
        self._folder, self._ranks = folder, ranks
        self._model, self._optimizer = model, optimizer
        self._run_id, self._keep = run_id, keep
        self._recipe_fingerprint, self._data_fingerprint = recipe_fingerprint, data_fingerprint
        self._verified: set[Path] = set()
        self.saved_step: int | None = None
        """Step of the newest checkpoint that is on the disk."""

    def resume(self, attempt: int) -> Progress:
        """Load the newest checkpoint that verifies and return where it stands; the beginning where there is none.

        Raises:
            InputError: It was made by another run, recipe or data.
        """
        chosen: Checkpoint | None = None
        refusal: str | None = None
        if self._ranks.is_first:
            self._folder.checkpoints_dir.mkdir(parents=True, exist_ok=True)
            checkpoints.remove_staging(self._folder.checkpoints_dir)
            chosen = checkpoints.latest_checkpoint(self._folder.checkpoints_dir, self._report_set_aside)
            refusal = self._refusal(chosen) if chosen else None
        chosen, refusal = self._ranks.from_first((chosen, refusal))
        if refusal is not None:
            raise InputError(
                refusal,
                f"start a new run (hpcgemma submit), or move {self._folder.checkpoints_dir} away to begin this one "
                "anew",
            )
        if chosen is None:
            return Progress()
        self.load_weights(chosen.path)
        state = torch.load(chosen.path / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
        self._optimizer.load_state_dict(state)
        progress = Progress.from_json(_state_of(chosen.path)["progress"])
        self._verified.add(chosen.path)
        self.saved_step = chosen.step
        if self._ranks.is_first:
            self._folder.record(
                "resumed",
                attempt=attempt,
                checkpoint=chosen.path.name,
                step=chosen.step,
                samples=chosen.samples,
            )
            say(f"resumed from {chosen.path.name}: {chosen.samples} rows consumed")
        return progress

    def save(self, progress: Progress, *, must_succeed: bool) -> None:
        """Save the present state; all ranks wait until it is on the disk.

        Args:
            progress: Where the training stands.
            must_succeed: Whether a full or broken disk is an error. In the middle of a training it is not: the last
                good checkpoint stays, an event is recorded, and the training goes on.

        Raises:
            DiskError: The disk refused, and the save must succeed.
        """
        problem: str | None = None
        if self._ranks.is_first:
            try:
                self._write(progress)
            except OSError as error:
                if error.errno not in DISK_ERRNOS and error.errno is not None:
                    raise
                problem = error.strerror or str(error)
                checkpoints.remove_staging(self._folder.checkpoints_dir)
        problem = self._ranks.from_first(problem)
        if problem is None:
            self.saved_step = progress.step
            return
        if self._ranks.is_first:
            self._folder.record("save_failed", step=progress.step, problem=problem)
        kept = "no checkpoint" if self.saved_step is None else f"step-{self.saved_step}"
        if must_succeed:
            raise DiskError(
                f"step {progress.step} could not be saved in {self._folder.checkpoints_dir}: {problem}; {kept} is "
                "the newest on the disk",
                "free space or raise the quota, then: hpcgemma resume RUN",
            )
        if self._ranks.is_first:
            say(f"WARNING: step {progress.step} could not be saved: {problem}. {kept} is kept; training goes on")

    def load_best(self, step: int) -> bool:
        """Load the weights of a step and return whether they were there and whole."""
        path = self._folder.checkpoints_dir / f"step-{step}"
        is_whole = True
        if self._ranks.is_first and path not in self._verified:
            found = {each.step: each for each in checkpoints.find_checkpoints(self._folder.checkpoints_dir)}
            problems = checkpoints.verify(found[step]) if step in found else ["it is not there"]
            if step in found and problems:
                self._report_set_aside(checkpoints.put_aside(found[step]), "; ".join(problems))
            is_whole = not problems
        is_whole = self._ranks.from_first(is_whole)
        if is_whole:
            self.load_weights(path)
        return is_whole

    def load_weights(self, path: Path) -> None:
        """Load a checkpoint's trained weights into the model.

        Raises:
            HpcGemmaError: They are those of another model.
        """
        tensors = load_file(path / WEIGHTS_NAME)
        trained = trained_parameters(self._model)
        differing = sorted(tensors.keys() ^ trained.keys()) or [
            name for name, tensor in tensors.items() if tensor.shape != trained[name].shape
        ]
        if differing:
            raise HpcGemmaError(
                f"{path / WEIGHTS_NAME} is of another model: {differing[0]} differs",
                "install the versions of transformers and peft that the run began with",
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                trained[name].copy_(tensor)

    def _write(self, progress: Progress) -> None:
        began = time.monotonic()
        self._folder.checkpoints_dir.mkdir(parents=True, exist_ok=True)
        staging = checkpoints.stage(self._folder.checkpoints_dir, progress.step)
        weights = {name: each.detach() for name, each in trained_parameters(self._model).items()}
        write_tensors(staging / WEIGHTS_NAME, weights)
        write_pickled(staging / OPTIMIZER_NAME, self._optimizer.state_dict())
        state = {"progress": progress.to_json(), "data_fingerprint": self._data_fingerprint}
        (staging / STATE_NAME).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        checkpoint = checkpoints.commit(
            staging,
            step=progress.step,
            samples=progress.samples,
            run_id=self._run_id,
            recipe_fingerprint=self._recipe_fingerprint,
            world_size=self._ranks.world_size,
        )
        self._verified.add(checkpoint.path)
        self._folder.record(
            "saved",
            step=progress.step,
            samples=progress.samples,
            seconds=round(time.monotonic() - began, 3),
            bytes=checkpoint.total_bytes,
        )
        protect = set() if progress.best_step is None else {progress.best_step}
        deleted = checkpoints.prune(
            self._folder.checkpoints_dir, keep=self._keep, protect=protect, verified=self._verified
        )
        self._verified -= {each.path for each in deleted}

    def _refusal(self, checkpoint: Checkpoint) -> str | None:
        """Return why a checkpoint is not this run's, or None."""
        if checkpoint.run_id != self._run_id:
            return f"{checkpoint.path} belongs to run {checkpoint.run_id!r}, this is {self._run_id!r}"
        if checkpoint.recipe_fingerprint != self._recipe_fingerprint:
            return f"{checkpoint.path} was trained with another recipe than run.yaml now holds"
        if _state_of(checkpoint.path)["data_fingerprint"] != self._data_fingerprint:
            return f"{checkpoint.path} was trained on other data than is prepared now"
        return None

    def _report_set_aside(self, checkpoint: Checkpoint, problem: str) -> None:
        self._folder.record("set_aside", checkpoint=checkpoint.path.name, problem=problem)
        say(f"WARNING: a damaged checkpoint was set aside as {checkpoint.path.name}: {problem}")


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters by name; tied ones once."""
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: The disk refused; safetensors itself raises an error of its own, which only its text tells apart.
    """
    try:
        save_file({name: each.contiguous() for name, each in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def write_pickled(path: Path, content: dict[str, Any]) -> None:
    """Write with torch.save.

    Raises:
        OSError: The disk refused; torch itself raises a RuntimeError that hides it.
    """
    with path.open("wb") as file:
        watched = _WatchedFile(file)
        try:
            torch.save(content, cast(IO[bytes], watched))
        except RuntimeError:
            if watched.problem is not None:
                raise watched.problem from None
            raise


class _WatchedFile:
    """A file that remembers why a write failed."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.problem: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return int(self._file.write(data))
        except OSError as error:
            self.problem = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _state_of(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
    return state
