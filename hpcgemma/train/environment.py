"""What a rank is told by those who started it: its number, its peers, its device."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpcgemma.errors import HpcGemmaError

if TYPE_CHECKING:
    import torch

USUAL_NOTICE_S = 60.0
"""Where it is not told how long ranks may save after a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """One rank's place among all ranks."""

    rank: int
    local_rank: int
    """Number among the ranks of this node."""
    world_size: int
    attempt: int
    """Which launch of this run it is, counted from 1."""
    device: str
    """The device demanded: auto, cpu or cuda."""
    interruption_every_h: float
    """Mean hours between interruptions that nothing announces, to be assumed before any were seen."""
    notice_s: float = USUAL_NOTICE_S
    """Seconds from a warning to the end of this process, in which the last save is tried again."""


def read_environment(variables: Mapping[str, str]) -> Environment:
    """Read a rank's place from RANK, LOCAL_RANK, WORLD_SIZE, or else from srun's SLURM_PROCID and its kin.

    Raises:
        HpcGemmaError: A variable is no number, or the ranks could not find each other.
    """
    if "RANK" in variables:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    elif "SLURM_PROCID" in variables:
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    else:
        names = ("", "", "")
    rank, local_rank, world_size = (
        _whole_number(variables, name, default) for name, default in zip(names, (0, 0, 1), strict=True)
    )
    if world_size > 1 and not (variables.get("MASTER_ADDR") and variables.get("MASTER_PORT")):
        raise HpcGemmaError(
            f"rank {rank} of {world_size} cannot find its peers: MASTER_ADDR or MASTER_PORT is not set",
            "start ranks through hpcgemma submit, or set both to a host and a free port of rank 0",
        )
    device = variables.get("HPCGEMMA_DEVICE", "auto")
    if device not in ("auto", "cpu", "cuda"):
        raise HpcGemmaError(f"HPCGEMMA_DEVICE is {device!r}", "set it to auto, cpu or cuda")
    return Environment(
        rank=rank,
        local_rank=local_rank,
        world_size=world_size,
        attempt=_whole_number(variables, "HPCGEMMA_ATTEMPT", 1),
        device=device,
        interruption_every_h=_interruption_every_h(variables),
        notice_s=_notice_s(variables),
    )


def announce_place(environment: Environment, device: torch.device) -> None:
    """Set RANK, LOCAL_RANK and WORLD_SIZE, which torch and accelerate read, also where srun gave others.

    accelerate takes LOCAL_RANK for the number of the GPU. A rank without peers has none of the three, else
    accelerate would look for peers.
    """
    if environment.world_size == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)
        return
    os.environ["RANK"] = str(environment.rank)
    os.environ["LOCAL_RANK"] = str(environment.local_rank if device.index is None else device.index)
    os.environ["WORLD_SIZE"] = str(environment.world_size)


def choose_device(environment: Environment, *, on_xla: bool = False) -> torch.device:
    """Return the device this rank computes on.

    Args:
        environment: This rank's place.
        on_xla: Whether the recipe's strategy is xla.

    Raises:
        HpcGemmaError: CUDA is demanded and torch sees no GPU. It never falls back to the CPU by itself. Or torch_xla is
            demanded and does not work.
    """
    import torch

    if on_xla:
        return _choose_xla(environment)
    if environment.device == "cpu" or (environment.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise HpcGemmaError(
            f"torch {torch.__version__} (built for CUDA {torch.version.cuda}) cannot see a GPU on this node",
            "compare the driver with the wheel: nvidia-smi shows the newest CUDA the driver knows; install the "
            "torch wheel for that one or an older one",
        )
    # With one GPU per task, Slurm shows each rank its own GPU as number 0.
    visible = torch.cuda.device_count()
    index = 0 if visible == 1 else environment.local_rank
    if index >= visible:
        raise HpcGemmaError(
            f"local rank {environment.local_rank} has no GPU: torch sees {visible} on this node",
            "ask for as many GPUs per node as ranks: --set resources.gpus_per_node=N",
        )
    return torch.device("cuda", index)


def _choose_xla(environment: Environment) -> torch.device:
    import torch

    if environment.device == "cuda":
        raise HpcGemmaError(
            "strategy.name xla computes on a TPU, and HPCGEMMA_DEVICE is cuda",
            "--set strategy.name=auto, or a profile with device: auto",
        )
    if environment.device == "cpu":
        os.environ["PJRT_DEVICE"] = "CPU"
    try:
        import torch_xla
    except ImportError as error:
        raise HpcGemmaError(
            f"strategy.name xla: torch_xla cannot be loaded beside torch {torch.__version__}: {error}",
            "pip install 'hpcgemma[xla]' in an environment of its own, or without a TPU: --set strategy.name=auto",
        ) from None
    del torch_xla
    return torch.device("xla")  # of which a process has one; its strategy sees to that


def _interruption_every_h(variables: Mapping[str, str]) -> float:
    try:
        return max(float(variables["HPCGEMMA_INTERRUPTION_EVERY_H"]), 1e-3)
    except (KeyError, ValueError):
        return 24.0  # as in a profile that does not say


def _notice_s(variables: Mapping[str, str]) -> float:
    try:
        seconds = float(variables["HPCGEMMA_NOTICE_S"])
    except (KeyError, ValueError):
        return USUAL_NOTICE_S
    return max(seconds, 0.0) if math.isfinite(seconds) else USUAL_NOTICE_S


def _whole_number(variables: Mapping[str, str], name: str, default: int) -> int:
    text = variables.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise HpcGemmaError(f"{name} is {text!r}, not a number", f"unset {name} or correct it") from None
