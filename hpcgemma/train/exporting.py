"""A run's model as a folder of its own: merged or adapters, complete or not there at all, and proved to be the same."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from hpcgemma import files
from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.train.failures import DiskError
from hpcgemma.train.trained_model import TrainedModel

_TOKENS = 16

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
"""By how much logits may differ from those of the model they come from, as a share of the largest: merging rounds each
weight once to the type that is written."""


@contextmanager
def staged(target: Path, *, replace: bool) -> Iterator[Path]:
    """Give a folder to write into, which becomes the target when the block ends well, and is removed when not.

    Args:
        target: Where it goes.
        replace: Whether a folder that is there may be replaced.

    Raises:
        InputError: There is one, and it may not; or it is no folder.
        DiskError: The disk refused.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(f"{target} is there and is no folder", "choose another with --to DIR")
    if target.exists() and not replace:
        raise InputError(f"{target} exists already", "choose another with --to DIR, or replace it with --force")
    staging = target.with_name(f".{target.name}-{os.getpid()}")
    outdated = target.with_name(f".{target.name}-outdated-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        files.make_private_dir(staging)
        yield staging
        for path in [*staging.rglob("*"), staging]:
            files.fsync_path(path)
        if target.exists():
            target.rename(outdated)
        staging.rename(target)
        files.fsync_path(target.parent)
    except (OSError, SafetensorError) as error:
        if outdated.exists() and not target.exists():
            outdated.rename(target)
        raise DiskError(f"the model could not be written to {target}: {error}", "free space, or --to DIR") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(outdated, ignore_errors=True)


def write_merged(trained: TrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write the whole model, adapters merged into its weights; the model in memory is changed by that.

    Args:
        trained: The model; its weights are not quantized.
        folder: Where to.
        dtype: Precision of the written weights.
    """
    model = trained.model
    if hasattr(model, "peft_config"):
        with torch.no_grad():
            model = model.merge_and_unload(safe_merge=True)
    model = model.to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(str(folder))


def write_adapters(trained: TrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write the adapters, and what was trained whole beside them.

    Args:
        trained: A peft model.
        folder: Where to.
        dtype: Precision of the written weights.
    """
    weights = {
        name: each.detach().to("cpu", dtype) for name, each in trained.model.named_parameters() if each.requires_grad
    }
    # peft's own guess at whether embeddings are trained would ask the hub.
    trained.model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)


def logits_of(trained: TrainedModel) -> torch.Tensor:
    """Return the logits of a few tokens, of shape tokens x vocabulary, on the CPU in fp32."""
    return _logits(trained.model, trained)


def check_reload(
    folder: Path, trained: TrainedModel, expected: torch.Tensor, dtype: torch.dtype, *, merged: bool
) -> float:
    """Load an exported folder as a user would, and return by how much its logits differ at most.

    Args:
        folder: What was written.
        trained: The model it came from; of a merged one, only what is known of it is used.
        expected: That one's logits, from before.
        dtype: Precision of the written weights.
        merged: Whether the folder holds a whole model.

    Raises:
        HpcGemmaError: They differ by more than rounding.
    """
    if merged:
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        is_vision = trained.recipe.model.kind == "vision"
        auto: Any = AutoModelForImageTextToText if is_vision else AutoModelForCausalLM
        trained.model.to("cpu")
        gc.collect()
        if trained.device.type == "cuda":
            torch.cuda.empty_cache()
        model = auto.from_pretrained(str(folder), local_files_only=True, dtype=dtype).to(trained.device).eval()
    else:
        from hpcgemma.train.trained_model import load_adapters

        model = trained.model
        with torch.no_grad():
            for each in model.parameters():
                if each.requires_grad:
                    each.fill_(float("nan"))  # so that what is not in the folder shows
        load_adapters(model, folder)
    difference = float((_logits(model, trained) - expected).abs().max())
    limit = TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
    if not difference <= limit:
        raise HpcGemmaError(
            f"the exported model, loaded again, gives logits that differ by {difference:.3g} (at most {limit:.3g} is "
            "rounding); it is removed",
            "--dtype fp32 keeps more digits, --adapter merges nothing; if it goes on, please report it as an issue",
        )
    return difference


def _logits(model: Any, trained: TrainedModel) -> torch.Tensor:
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    # The last tokens of a vocabulary may stand for images.
    ids_BT = torch.randint(0, max(2, vocabulary // 2), (1, _TOKENS), generator=generator)
    with torch.no_grad(), trained.autocast():
        logits_BTV: torch.Tensor = model(input_ids=ids_BT.to(trained.device), use_cache=False).logits
    return logits_BTV[0].float().cpu()
