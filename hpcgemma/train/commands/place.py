"""Where a command's process is: alone, or one of several that srun or torchrun started with the same command."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch

from hpcgemma.recipes.types import TrainingSpec
from hpcgemma.train.environment import announce_place, choose_device, read_environment
from hpcgemma.train.rank import hide_progress_bars, set_up_torch
from hpcgemma.train.ranks import Ranks

_FIRST_PORT, _PORTS = 20000, 20000


def take_place(training: TrainingSpec) -> tuple[Ranks, torch.device]:
    """Find the other ranks, where there are any, and return them and this one's device.

    Raises:
        HpcGemmaError: They cannot be found, or there is no such device.
    """
    variables = place_of(os.environ)
    environment = read_environment(variables)
    device = choose_device(environment)
    os.environ.update({name: variables[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in variables})
    announce_place(environment, device)
    set_up_torch(device, training)
    hide_progress_bars()
    return Ranks(environment, device), device


def place_of(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with what srun leaves out: who the peers are, and where they meet.

    SLURM_NTASKS is that of the whole job, also for a process that was not started by srun, such as the batch script
    itself; only a step's own variables tell. Peers meet on the step's first node, at a port that follows from its
    number.
    """
    found = dict(variables)
    if "RANK" in found:
        return found
    tasks = found.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_STEP_ID" in found else "1"
    if tasks == "1":
        return {name: value for name, value in found.items() if name not in ("SLURM_PROCID", "SLURM_NTASKS")}
    found["SLURM_NTASKS"] = tasks
    nodes = found.get("SLURM_STEP_NODELIST") or found.get("SLURM_JOB_NODELIST", "")
    if nodes and not found.get("MASTER_ADDR"):
        found["MASTER_ADDR"] = _first_node(nodes) if found.get("SLURM_STEP_NUM_NODES", "1") != "1" else "127.0.0.1"
    number = f"{found.get('SLURM_JOB_ID', '')}{found.get('SLURM_STEP_ID', '')}"
    if number.isdigit() and not found.get("MASTER_PORT"):
        found["MASTER_PORT"] = str(_FIRST_PORT + int(number) % _PORTS)
    return found


def _first_node(nodes: str) -> str:
    """Return the first name of a list such as ``lrdn[0012-0015,0020],login01``."""
    found = re.match(r"([^,\[]*)(?:\[([^\],-]*)[^\]]*\]([^,]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes
