"""A trained model as it is judged, asked and exported: of a run, at any of its checkpoints, or of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hpcgemma import checkpoints
from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.recipes.types import DataSpec, ModelSpec, Recipe, TrainingSpec
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.checkpointing import STATE_DIR
from hpcgemma.train.data.batches import MicroBatch
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.prompts import TurnFormat
from hpcgemma.train.data.samples import Samples
from hpcgemma.train.data.token_rows import TokenRows
from hpcgemma.train.data.tokenizer import first_line
from hpcgemma.train.model import build_model
from hpcgemma.train.objective import Objective
from hpcgemma.train.parameters import plain_names
from hpcgemma.train.quantization import import_bitsandbytes
from hpcgemma.train.strategies import sharded_state

ADAPTER_NAME = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A whole model in this process; what an evaluation asks of a strategy, without one."""

    model: Any
    evaluated: nn.Module
    recipe: Recipe
    """As it was loaded for this device."""
    notes: list[str]
    """Sentences on what was chosen, and why."""
    device: torch.device
    moves_together: bool = False

    def shaped(self, batch: MicroBatch) -> MicroBatch:
        """Return a batch as it is: any shape will do."""
        return batch

    def generating(self) -> AbstractContextManager[object]:
        """Return a context in which the bare model may generate."""
        return nullcontext()

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of the recipe's precision, for what calls the bare model."""
        is_bf16 = self.recipe.training.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_bf16)


def of_run(
    folder: RunFolder, recipe: Recipe, prepared: PreparedData, checkpoint: int | None, device: torch.device
) -> TrainedModel:
    """Return a run's model.

    Args:
        folder: The run folder.
        recipe: The run's.
        prepared: The run's data, for its vocabulary.
        checkpoint: Step of the checkpoint whose weights it has; None: those of ``final/``.
        device: Where it goes.

    Raises:
        InputError: The weights are damaged, or the base model is not here.
    """
    recipe, notes = here(recipe, device)
    if checkpoint is None and recipe.lora is None:
        model = recipe.model.model_copy(
            update={"path": str(folder.final_dir), "revision": None, "config": {}, "kind": recipe.model.kind}
        )
        return _trained(recipe.model_copy(update={"model": model}), prepared, device, notes)
    found = _trained(recipe, prepared, device, notes)
    place = folder.final_dir if checkpoint is None else folder.checkpoints_dir / f"step-{checkpoint}"
    try:
        if checkpoint is None:
            load_adapters(found.model, folder.final_dir)
        else:
            _refuse_damaged(folder.checkpoints_dir, checkpoint)
            _load_checkpoint(found.model, place / STATE_DIR)
    except HpcGemmaError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"the weights in {place} cannot be read: {first_line(error)}", "choose another with --checkpoint"
        ) from None
    return found


def of_folder(folder: Path, turns: TurnFormat, device: torch.device) -> TrainedModel:
    """Return the model of a folder that from_pretrained can load: a whole one, or adapters whose base is here too.

    Args:
        folder: A model's, with its tokenizer.
        turns: Its tokenizer's format.
        device: Where it goes.

    Raises:
        InputError: The weights are incomplete, or the base model is not here.
    """
    base = base_of(folder)
    config = _json(folder / "config.json") if base is None else {}
    written = config.get("dtype") or config.get("torch_dtype") or ("float32" if device.type == "cpu" else "bfloat16")
    # A processor beside the weights of a text model alone, as some copies of Gemma 3 have it, is no vision tower.
    sees = turns.special.image is not None and config.get("model_type", "gemma3") == "gemma3"
    training = TrainingSpec(precision="fp32" if written == "float32" else "bf16", trained_weights=_held_in(written))
    recipe = Recipe(
        name="model",
        description="A model in a folder",
        model=ModelSpec(path=base or str(folder), kind="vision" if sees else "text"),
        data=DataSpec(),
        training=training,
    )
    found = _trained(recipe, vocabulary_of(folder, turns), device, [])
    if base is None:
        return found
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(found.model, str(folder))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"the adapters in {folder} do not fit {base!r}: {first_line(error)}", "check base_model_name_or_path there"
        ) from None
    return TrainedModel(model, Objective(model, training, autocast=True), recipe, found.notes, device)


def base_of(folder: Path) -> str | None:
    """Return the base model of a folder with adapters; None where the folder holds a whole model.

    Raises:
        InputError: It does not say which, or holds no model.
    """
    if not (folder / "adapter_config.json").is_file():
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder} holds neither a model nor adapters", "name a run, or a folder with config.json")
        return None
    base = _json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise InputError(
            f"the adapters in {folder} do not say which model they are for", "name the run that they come from"
        )
    return str(base)


def vocabulary_of(folder: Path, turns: TurnFormat, rows: TokenRows | None = None) -> PreparedData:
    """Return what building a model asks of prepared data, for a folder that is no run's.

    Args:
        folder: A model's, with its tokenizer.
        turns: Its tokenizer's format.
        rows: The rows to be judged by, if any.
    """
    special = turns.special
    ids = {"pad": special.pad, "eos": special.eos, "end_of_turn": special.end_of_turn}
    summary = {
        "special_ids": ids | ({} if special.bos is None else {"bos": special.bos}),
        "vocab_size": turns.tokenizer.get_vocab_size(),
        "fingerprint": "",
    }
    some = rows if rows is not None else TokenRows.of(turns.tokenize([]))
    return PreparedData(folder=folder, train=some, eval=some, samples=Samples.of(some), summary=summary)


def here(recipe: Recipe, device: torch.device) -> tuple[Recipe, list[str]]:
    """Return a recipe as its model can be loaded here, whatever it was trained on, and sentences on what differs."""
    notes = []
    model, training = recipe.model, {"neftune_alpha": None, "compile": False, "liger_kernels": False}
    if model.quantization is not None and import_bitsandbytes() is None:
        notes.append("quantization: none, bitsandbytes is not installed; the base model is taken whole")
        model = model.model_copy(update={"quantization": None})
    if device.type != "cuda" and model.attention == "flash_attention_2":
        model = model.model_copy(update={"attention": "auto"})
    return recipe.model_copy(update={"model": model, "training": recipe.training.model_copy(update=training)}), notes


def _trained(recipe: Recipe, prepared: PreparedData, device: torch.device, notes: list[str]) -> TrainedModel:
    built = build_model(recipe, prepared, device)
    built.model.eval()
    return TrainedModel(
        built.model, Objective(built.model, recipe.training, autocast=True), recipe, [*notes, *built.notes], device
    )


def load_adapters(model: Any, folder: Path) -> None:
    """Give a peft model the adapters of a folder.

    Raises:
        InputError: They are of another model.
    """
    from peft import set_peft_model_state_dict

    weights = load_file(folder / ADAPTER_NAME)
    result: Any = set_peft_model_state_dict(model, weights)
    trained = {name for name, each in model.named_parameters() if each.requires_grad}
    faulty = sorted([*result.unexpected_keys, *(trained & set(result.missing_keys))])
    if faulty:
        raise InputError(
            f"the adapters in {folder} are of another model: {faulty[0]} differs",
            "install the versions of transformers and peft that the run began with",
        )


def _refuse_damaged(directory: Path, step: int) -> None:
    found = checkpoints.checkpoint_at(directory, step)
    problems = ["it is not there"] if found is None else checkpoints.verify(found)
    if problems:
        raise InputError(
            f"the checkpoint {directory / f'step-{step}'} is damaged: {'; '.join(problems)}",
            "choose another with --checkpoint",
        )


def _load_checkpoint(model: nn.Module, folder: Path) -> None:
    trained = {name: each for name, each in plain_names(model).items() if each.requires_grad}
    sharded_state.contents_of(folder, {name: tuple(each.shape) for name, each in trained.items()})
    sharded_state.read_here(folder, {sharded_state.weight_key(name): each.detach() for name, each in trained.items()})


def _held_in(written: str) -> Any:
    return "fp32" if written == "float32" else "bf16"


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", "check the folder") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no JSON object", "check the folder")
    return content
