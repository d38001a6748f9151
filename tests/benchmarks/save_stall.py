"""How long a save holds the training up: waited for, and written beside the training.

One process on one core takes steps (matrix products) and saves every so many, with the code that trains, a state of
tensors like those of a model; both ways in turn, in one process. Run as ``python -m tests.benchmarks.save_stall``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch

from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.provenance import Provenance
from hpcgemma.train.checkpointing import Checkpointing
from hpcgemma.train.environment import Environment
from hpcgemma.train.progress import Progress
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.strategies import Strategy

TENSOR_MIB = 8
STEPS_BETWEEN = 40
WIDTH = 1200
"""Width of the matrix whose product is a step."""


class State:
    """What a strategy saves, without a model."""

    def __init__(self, mib: int) -> None:
        elements = TENSOR_MIB * 2**20 // 4
        self._held = {f"weights/{number}": torch.rand(elements) for number in range(mib // TENSOR_MIB)}

    def saved_state(self) -> dict[str, torch.Tensor]:
        """Return it."""
        return self._held


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512, help="size of the state")
    parser.add_argument("--saves", type=int, default=5, help="saves of each way")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; default: a temporary folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = State(options.mib)
    stalls: dict[bool, list[float]] = {False: [], True: []}
    steps: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(dir=options.folder) as place, _silence():
        ways = {asynchronous: _checkpointing(Path(place), state, asynchronous) for asynchronous in (False, True)}
        plain = [_step() for _ in range(STEPS_BETWEEN)]
        for number in range(options.saves + 1):
            for asynchronous, checkpointing in ways.items():
                began = time.perf_counter()
                checkpointing.save(Progress(step=number + 1, samples=number + 1))
                stall = time.perf_counter() - began
                taken = [_step() for _ in range(STEPS_BETWEEN)]
                began = time.perf_counter()
                checkpointing.settle()
                stall += time.perf_counter() - began
                if number:  # the first makes the buffers
                    stalls[asynchronous].append(stall)
                    steps[asynchronous] += taken
    print(f"a state of {options.mib} MiB, {options.saves} saves of each way, a step without any save {_ms(plain)} ms")
    print("| save | stall, s: median | least | most | step after it, ms: median |\n|---|---:|---:|---:|---:|")
    for asynchronous, name in ((False, "waited for"), (True, "beside the training")):
        each, after = stalls[asynchronous], _ms(steps[asynchronous])
        print(f"| {name} | {statistics.median(each):.3f} | {min(each):.3f} | {max(each):.3f} | {after} |")
    lost = {way: sum(stalls[way]) + sum(steps[way]) - len(steps[way]) * statistics.median(plain) for way in stalls}
    print(
        f"time that a save costs in all, its stall and slower steps: {lost[False] / options.saves:.3f} s waited for, "
        f"{lost[True] / options.saves:.3f} s beside"
    )


def _checkpointing(place: Path, state: State, asynchronous: bool) -> Checkpointing:
    folder = RunFolder(place / ("beside" if asynchronous else "waited"))
    folder.path.mkdir()
    here = Environment(rank=0, local_rank=0, world_size=1, attempt=1, device="cpu", interruption_every_h=24.0)
    return Checkpointing(
        folder,
        Ranks(here, torch.device("cpu")),
        cast(Strategy, state),
        run_id="run",
        recipe_fingerprint="r",
        made_with=Provenance(data="d", libraries={}),
        allowed={},
        keep=2,
        asynchronous=asynchronous,
    )


def _step() -> float:
    """Take a step and return its seconds."""
    began = time.perf_counter()
    matrix = torch.ones(WIDTH, WIDTH)
    for _ in range(4):
        matrix = matrix @ matrix * 0.001
    return time.perf_counter() - began


def _ms(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.0f}"


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


if __name__ == "__main__":
    main()
