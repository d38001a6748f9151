"""The finished model: weights and tokenizer as from_pretrained loads them, complete or not there at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from hpcgemma import files
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.failures import DiskError
from hpcgemma.train.parameters import plain_names


def write_final(
    folder: RunFolder, model: Any, weights: dict[str, torch.Tensor], tokenizer_dir: Path, dtype: torch.dtype
) -> None:
    """Write ``final/``; where it is there already, do nothing.

    Args:
        folder: The run folder.
        model: A transformers model, or a peft model, of which only the adapters are written.
        weights: Its weights, whole, by name: all of them, or of a peft model those that were trained.
        tokenizer_dir: The prepared tokenizer, which is copied beside the weights.
        dtype: Precision of the written weights.

    Raises:
        DiskError: The disk refused.
    """
    if folder.final_dir.exists():
        return
    for leftover in folder.path.glob(".final-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = folder.path / f".final-{os.getpid()}"
    try:
        files.make_private_dir(staging)
        shutil.copytree(tokenizer_dir, staging, dirs_exist_ok=True)
        _write_model(model, weights, staging, dtype)
        for path in [*staging.rglob("*"), staging]:
            files.fsync_path(path)
        staging.rename(folder.final_dir)
        files.fsync_path(folder.path)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise DiskError(
            f"the finished model could not be written to {folder.final_dir}: {error}; the last checkpoint holds it",
            "free space or raise the quota, then: hpcgemma resume RUN",
        ) from None


def _write_model(model: Any, weights: dict[str, torch.Tensor], staging: Path, dtype: torch.dtype) -> None:
    if hasattr(model, "peft_config"):
        # Trained embeddings are in modules_to_save; peft's own guess would ask the hub.
        model.save_pretrained(str(staging), state_dict=weights, save_embedding_layers=False)
        return
    written = {name: tensor.to(dtype) for name, tensor in weights.items()}
    names = plain_names(model, remove_duplicate=False)
    # What else belongs to the weights: buffers, which no strategy splits.
    written |= {name: each.cpu() for name, each in model.state_dict().items() if name not in names}
    model.config.dtype = dtype
    model.save_pretrained(str(staging), state_dict=written)
