"""The model that a command asks for: what is known of it before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import Recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train import trained_model
from hpcgemma.train.commands.program import Request
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.prompts import TurnFormat
from hpcgemma.train.data.turn_format import turn_format
from hpcgemma.train.runfile import read_run
from hpcgemma.train.trained_model import TrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a model is: in a run, or in a folder."""

    described: str
    tokenizer_dir: Path
    turns: TurnFormat
    run: RunFolder | None = None
    run_id: str | None = None
    recipe: Recipe | None = None
    prepared: PreparedData | None = None
    checkpoint: int | None = None
    """Step of a run's checkpoint; None: ``final/``."""
    folder: Path | None = None


def source_of(request: Request) -> Source:
    """Return what a request names: ``run`` with ``checkpoint`` (``final`` or a step), or ``folder``.

    Raises:
        InputError: It cannot be read.
    """
    if request.get("run"):
        run = RunFolder(Path(request["run"]))
        run_id, recipe = read_run(run)
        if not run.prepared_dir.is_dir():
            raise InputError(f"{run.prepared_dir} is not there: the run has not begun", "hpcgemma status  says why")
        prepared = PreparedData.open(run.prepared_dir)
        step = None if request["checkpoint"] == "final" else int(request["checkpoint"])
        place = "final" if step is None else f"step {step}"
        return Source(
            described=f"run {run.path.name}, {place}",
            tokenizer_dir=prepared.tokenizer_dir,
            turns=turn_format(prepared.tokenizer_dir, run.path.name),
            run=run,
            run_id=run_id,
            recipe=recipe,
            prepared=prepared,
            checkpoint=step,
        )
    folder = Path(request["folder"])
    base = trained_model.base_of(folder)
    tokenizer_dir = folder
    if not (folder / "tokenizer.json").is_file():
        tokenizer_dir = Path(base or folder)
    if not (tokenizer_dir / "tokenizer.json").is_file():
        raise InputError(f"{folder} has no tokenizer.json", "copy the tokenizer beside the weights")
    turns = turn_format(tokenizer_dir, str(folder))
    return Source(described=str(folder), tokenizer_dir=tokenizer_dir, turns=turns, folder=folder)


def load(source: Source, device: torch.device) -> tuple[TrainedModel, PreparedData]:
    """Return the model, and what is known of its vocabulary."""
    if source.run is not None and source.recipe is not None and source.prepared is not None:
        model = trained_model.of_run(source.run, source.recipe, source.prepared, source.checkpoint, device)
        return model, source.prepared
    folder = source.folder or source.tokenizer_dir
    model = trained_model.of_folder(folder, source.turns, device)
    return model, trained_model.vocabulary_of(folder, source.turns)
