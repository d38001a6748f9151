"""Weights and optimizer states on the disk: written by all ranks, read by any number of them, under any strategy.

torch.distributed.checkpoint does the sharding. Its safetensors format is used, not its default one: nothing in it is
pickled, so nothing can be smuggled into it. State is kept by the parameter's name and in its shape, so it does not
matter how parameters are grouped, sharded or ordered when it is read.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from hpcgemma.errors import HpcGemmaError

_WEIGHTS = "weights/"
_OPTIMIZER = "optimizer/"


class Entry(NamedTuple):
    """A tensor in a folder."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def weight_key(name: str) -> str:
    """Return the key of a parameter's values."""
    return f"{_WEIGHTS}{name}"


def state_key(name: str, state: str) -> str:
    """Return the key of one of the optimizer's states of a parameter."""
    return f"{_OPTIMIZER}{name}/{state}"


def states_of(contents: Mapping[str, Entry], name: str) -> dict[str, Entry]:
    """Return the optimizer's states of a parameter that a folder holds."""
    prefix = state_key(name, "")
    return {key.removeprefix(prefix): entry for key, entry in contents.items() if key.startswith(prefix)}


def write(folder: Path, tensors: Mapping[str, torch.Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Write tensors into a folder; all ranks together.

    Args:
        folder: The folder; it is there, and empty.
        tensors: By key, with at least one dimension. A DTensor is written by all ranks that hold a part of it; another
            tensor by one of those that have it.
        group: All ranks, over gloo, as a group of the calling thread's own; None: the one that all threads share.

    Raises:
        OSError: The disk refused, on any rank.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True, enable_consolidation=False)
    try:
        with _quiet():
            save(dict(tensors), storage_writer=writer, process_group=group, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                raise failure from None
        raise


def read(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill tensors from a folder; all ranks together, each with its own parts or its own tensors."""
    with torch.no_grad(), _quiet():
        load(
            dict(tensors),
            storage_reader=HuggingFaceStorageReader(str(folder)),
            no_dist=not dist.is_initialized(),
        )


def read_here(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Fill whole tensors from a folder, in this process alone, whatever the others do."""
    with torch.no_grad(), _quiet():
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def contents_of(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Entry]:
    """Return what is in a folder.

    Args:
        folder: The folder.
        shapes: Of the parameters that are trained now, by name.

    Raises:
        HpcGemmaError: It holds the weights of another model.
    """
    metadata: Any = HuggingFaceStorageReader(str(folder)).read_metadata()
    found = {key: Entry(tuple(each.size), each.properties.dtype) for key, each in metadata.state_dict_metadata.items()}
    there = {key.removeprefix(_WEIGHTS): entry.shape for key, entry in found.items() if key.startswith(_WEIGHTS)}
    differing = sorted(name for name in there.keys() | shapes.keys() if there.get(name) != shapes.get(name))
    if differing:
        raise HpcGemmaError(
            f"{folder} is of another model: {differing[0]} differs",
            "install the versions of transformers and peft that the run began with",
        )
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from remarking that a lone rank saves alone."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed is disabled, unavailable or uninitialized.*")
        yield
