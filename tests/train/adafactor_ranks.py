"""Ranks that train a small model with Adafactor under a sharding; test_adafactor.py starts them.

Run as ``python -m tests.train.adafactor_ranks OUT SCENARIO...`` with torch's variables of a rank in the environment.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hpcgemma.train.adafactor import Adafactor
from hpcgemma.train.strategies.zero_pieces import zero_placements
from tests.claims import rendezvous_port

DEADLINE_S = 120.0
LEARNING_RATES = (0.05, 0.1, 0.02, 0.04, 0.01, 0.03)
"""Of each step; large, so that a wrong update shows."""
WEIGHT_DECAY = 0.1
RESUMED_STEP = 3
"""Where a run that resumes throws its optimizer away."""
ZERO: dict[str, dict[str, Any]] = {
    "zero-1": {"stage": 1, "parameter_alignment": True},
    "zero-2": {"stage": 2, "round_robin_gradients": True},
    "zero-3": {"stage": 3, "stage3_param_persistence_threshold": 20, "sub_group_size": 20},
}
"""Options of DeepSpeed: with gaps between parameters, in another order, in several sub-groups."""
BF16 = "zero-1-bf16"
"""DeepSpeed's optimizer of its own for stage 1 of bf16 whose gradients are added up in fp32."""


def build_model() -> nn.Module:
    """Return a model whose sizes no number of ranks divides."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 1), nn.Linear(1, 3, bias=False))


def build_batch() -> tuple[Tensor, Tensor]:
    """Return inputs [12, 5] and targets [12, 3], of all ranks together."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 5, generator=generator), torch.randn(12, 3, generator=generator)


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    """Return parameter groups: matrices decay, vectors do not."""
    parameters = list(model.parameters())
    return [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]


def names_of(model: nn.Module) -> dict[Tensor, str]:
    """Return the name of each parameter."""
    return {parameter: name for name, parameter in model.named_parameters()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, share: slice = slice(None)) -> None:
    """Take some steps of a plain training on a share of the rows."""
    inputs, targets = build_batch()
    for step in steps:
        torch.autograd.backward(nn.functional.mse_loss(model(inputs[share]), targets[share]))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATES[step]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def run_ranks(out: Path, world_size: int, *scenarios: str) -> dict[str, Any]:
    """Start ranks, wait for their end, and return what the first one says of each scenario."""
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(rendezvous_port()),
        "WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    ranks: list[subprocess.Popen[bytes]] = []
    logs = [out / f"rank-{rank}.log" for rank in range(world_size)]
    deadline = time.monotonic() + DEADLINE_S
    try:
        for rank, path in enumerate(logs):
            with path.open("wb") as log:
                command = [sys.executable, "-m", "tests.train.adafactor_ranks", str(out), *scenarios]
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                ranks.append(subprocess.Popen(command, env=environment | place, stdout=log, stderr=subprocess.STDOUT))
        codes = [rank.wait(timeout=max(0.1, deadline - time.monotonic())) for rank in ranks]
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
                process.wait()
    assert codes == [0] * world_size, "\n".join(path.read_text(errors="replace")[-5000:] for path in logs)
    said: dict[str, Any] = torch.load(out / "said.pt", weights_only=True)
    return said


def main(out: Path, scenarios: Sequence[str]) -> None:
    """Take part in scenarios as one rank; the first rank writes down their ends."""
    dist.init_process_group("gloo")
    said = {}
    for scenario in scenarios:
        run: Callable[[Path, str], dict[str, Any]] = _zero if scenario.startswith("zero") else _fsdp
        said[scenario] = run(out, scenario)
    if dist.get_rank() == 0:
        torch.save(said, out / "said.pt")
    dist.destroy_process_group()


def _share() -> slice:
    rows = 12 // dist.get_world_size()
    return slice(dist.get_rank() * rows, (dist.get_rank() + 1) * rows)


def _fsdp(out: Path, scenario: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if scenario == "hybrid":
        mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("copy", "shard"))
    ends = []
    for resumes in (False, True):
        model = build_model()
        fully_shard(model[0], mesh=mesh)  # type: ignore[index]
        fully_shard(model, mesh=mesh)
        optimizer = Adafactor(grouped(model), names_of(model), lr=0.0)
        train(model, optimizer, range(RESUMED_STEP), _share())
        if resumes:
            state = copy.deepcopy(optimizer.state_dict())
            _shard_vectors(state["statistics"], dict(model.named_parameters()))
            optimizer = Adafactor(grouped(model), names_of(model), lr=0.0)
            optimizer.load_state_dict(state)
        train(model, optimizer, range(RESUMED_STEP, len(LEARNING_RATES)), _share())
        weights = {}
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor)
            weights[name] = parameter.full_tensor().detach()
        ends.append(_end(weights, optimizer))
    return {"uninterrupted": ends[0], "resumed": ends[1]}


def _shard_vectors(statistics: dict[str, dict[str, Any]], parameters: dict[str, nn.Parameter]) -> None:
    """Shard what has a parameter's shape as the parameter is, as reading a sharded checkpoint leaves it."""
    for name, each in statistics.items():
        parameter = parameters[name]
        if isinstance(parameter, DTensor) and each["column_I"].shape == parameter.shape:
            each["column_I"] = distribute_tensor(each["column_I"], parameter.device_mesh, parameter.placements)


def _zero(out: Path, scenario: str) -> dict[str, Any]:
    folder = str(out / scenario)
    engine, names, optimizer = _engine(scenario)
    _train_engine(engine, range(RESUMED_STEP))
    engine.save_checkpoint(folder)
    _train_engine(engine, range(RESUMED_STEP, len(LEARNING_RATES)))
    uninterrupted = _end(_gathered(names), optimizer)
    engine.destroy()
    engine, names, optimizer = _engine(scenario)
    engine.load_checkpoint(folder)
    _train_engine(engine, range(RESUMED_STEP, len(LEARNING_RATES)))
    resumed = _end(_gathered(names), optimizer)
    engine.destroy()
    return {"uninterrupted": uninterrupted, "resumed": resumed}


def _engine(scenario: str) -> tuple[Any, dict[Tensor, str], Adafactor]:
    import deepspeed

    # Unasked for, and a compiler would have to be there.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = build_model()
    names = names_of(model)
    optimizer = Adafactor(grouped(model), names, lr=0.0)
    config = {
        "train_micro_batch_size_per_gpu": 12 // dist.get_world_size(),
        "zero_optimization": {"stage": 1} if scenario == BF16 else ZERO[scenario],
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": scenario == BF16},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    whole = _gathered(names)
    for partition, placement in zero_placements(engine.optimizer, names):
        optimizer.place(partition, placement)
        for piece in placement.pieces:
            held = partition[piece.offset : piece.offset + piece.stop - piece.start]
            assert torch.equal(held, whole[piece.name].flatten()[piece.start : piece.stop].float()), piece
    return engine, names, optimizer


def _train_engine(engine: Any, steps: range) -> None:
    dtype = next(engine.module.parameters()).dtype
    inputs, targets = (each[_share()].to(dtype) for each in build_batch())
    for step in steps:
        engine.backward(nn.functional.mse_loss(engine(inputs), targets))
        for group in engine.optimizer.param_groups:
            group["lr"] = LEARNING_RATES[step]
        engine.step()


def _gathered(names: dict[Tensor, str]) -> dict[str, Tensor]:
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(names)):
        return {name: parameter.detach().clone() for parameter, name in names.items()}


def _end(weights: dict[str, Tensor], optimizer: Adafactor) -> dict[str, Any]:
    """Return what a training ended with, having seen that all ranks have the same statistics."""
    statistics = optimizer.state_dict()["statistics"]
    for each in statistics.values():
        for tensor in (each["row_O"], each["column_I"]):
            first = tensor.clone()
            dist.broadcast(first, 0)
            assert torch.equal(tensor, first)
    return {"weights": weights, "statistics": copy.deepcopy(statistics)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
