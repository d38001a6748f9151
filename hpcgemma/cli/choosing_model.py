"""Which trained model a word on the command line means: of a run, at one of its checkpoints, or in a folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hpcgemma import checkpoints
from hpcgemma.checkpoints import Checkpoint
from hpcgemma.cli import choosing
from hpcgemma.errors import InputError
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.provenance import STATE_NAME
from hpcgemma.runs.store import RunEntry

FINAL = "final"


def require_model(word: str, checkpoint: str | None) -> dict[str, Any]:
    """Return what a program of the trainer is to load: ``run`` and ``checkpoint``, or ``folder``.

    Args:
        word: Name, job id or folder of a run, or a folder with a model.
        checkpoint: ``final``, ``best``, ``latest`` or a step; None: ``final``, or before the run's end its latest.

    Raises:
        InputError: There is none, or not at this checkpoint.
    """
    path = Path(word).expanduser()
    if path.name == FINAL and (path.parent / "run.yaml").is_file() and path.is_dir():
        word = str(path.parent)  # adapters need what the run knows of their base
        checkpoint = checkpoint or FINAL
    elif not (path / "run.yaml").is_file() and any(
        (path / name).is_file() for name in ("config.json", "adapter_config.json")
    ):
        if checkpoint is not None:
            raise InputError(
                f"{word} is a model's folder, which has no checkpoints", "drop --checkpoint, or name a run"
            )
        return {"run": None, "checkpoint": None, "folder": str(path.resolve())}
    entry = choosing.find_run(word)
    if entry is None:
        raise InputError(
            f"{word!r} is neither a run of hpcgemma nor a folder with a model",
            "hpcgemma status  lists all runs; a model's folder holds config.json or adapter_config.json",
        )
    return {"run": entry.path, "checkpoint": _checkpoint_of(entry, checkpoint), "folder": None}


def _checkpoint_of(entry: RunEntry, wanted: str | None) -> str:
    """Return ``final`` or the step of a checkpoint that is there."""
    folder = entry.folder
    found = checkpoints.find_checkpoints(folder.checkpoints_dir)
    steps = [str(each.step) for each in found]
    has_final = folder.final_dir.is_dir()
    if wanted is None:
        wanted = FINAL if has_final else "latest"
    if wanted == FINAL and has_final:
        return FINAL
    if not found and not has_final:
        raise InputError(
            f"run {entry.name} has no checkpoint yet", f"hpcgemma status {entry.name}  says where it stands"
        )
    if wanted == "latest" and found:
        return steps[-1]
    if wanted == "best" and found:
        wanted = _best_step(folder, found[-1])
    plain = wanted.removeprefix("step-")
    if re.fullmatch(r"[0-9]+", plain) and str(int(plain)) in steps:
        return str(int(plain))
    there = [*steps, *(["best", "latest"] if found else []), *([FINAL] if has_final else [])]
    raise InputError(f"run {entry.name} has no checkpoint {wanted!r}", f"--checkpoint takes one of: {', '.join(there)}")


def _best_step(folder: RunFolder, newest: Checkpoint) -> str:
    """Return the step of the lowest held-out loss, as the newest checkpoint knows it."""
    path = newest.path / STATE_NAME
    try:
        best = json.loads(path.read_text(encoding="utf-8"))["progress"]["best"]
        return str(best[0][1])
    except IndexError:
        raise InputError(
            f"{folder.path.name} has not been evaluated yet, so no checkpoint is the best", "--checkpoint latest"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {error}", "--checkpoint latest") from None
