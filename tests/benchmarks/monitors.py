"""What the monitors cost: seconds and memory of a measured row, beside a row that is trained or evaluated.

Run it with `python -m tests.benchmarks.monitors`; the table goes into docs/benchmarks.md. A trained row is a forward
and backward pass through the loss, an evaluated one a forward pass without gradients, a measured one that with
attention and logits watched. Each is a process of its own; the peak is what its first pass grows by over weights and
inputs, the time that of its second. Times are compared by the processor's seconds, which other work on the machine
stretches less.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hpcgemma.recipes.types import TrainingSpec
from hpcgemma.train.monitors.attention import WatchedAttention, watched
from hpcgemma.train.monitors.logits import WatchedLogits
from hpcgemma.train.objective import Objective

KIB_PER_MIB = 1 << 10
KINDS = ("trained", "evaluated", "measured")


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one row took."""

    mib: float
    """By which the process had grown at its peak."""
    seconds: float
    cpu_seconds: float
    """Of all cores together."""


def tiny(model_type: str, tokens: int) -> Any:
    """Return a model of 6 layers of 8 heads, every second one with a window of half the row."""
    config = AutoConfig.for_model(
        model_type,
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        query_pre_attn_scalar=64,
        max_position_embeddings=tokens,
        sliding_window=tokens // 2,
        layer_types=["sliding_attention", "full_attention"] * 3,
    )
    kernel = "eager" if model_type == "gemma2" else "sdpa"
    build: Any = AutoModelForCausalLM.from_config
    return build(config, attn_implementation=kernel, dtype=torch.float32)


def pass_of(kind: str, model: Any, tokens: int) -> Callable[[], None]:
    """Return what takes one row through a model."""
    objective = Objective(model, TrainingSpec(precision="fp32"), autocast=False)
    ids_1T = torch.randint(1, 32_000, (1, tokens), generator=torch.Generator().manual_seed(0))
    positions_N = torch.arange(tokens // 2, tokens - 1)
    batch = (ids_1T, positions_N, ids_1T[0, positions_N + 1])

    def train() -> None:
        torch.autograd.backward(objective(*batch))
        model.zero_grad()

    def evaluate() -> None:
        with torch.no_grad():
            objective(*batch)

    def measure() -> None:
        attention, logits = WatchedAttention(tokens), WatchedLogits(torch.device("cpu"))
        attention.begin(tokens)
        logits.begin(positions_N)
        with torch.no_grad(), watched(model, attention), logits.of(model):
            objective(*batch)

    return {"trained": train, "evaluated": evaluate, "measured": measure}[kind]


def run(kind: str, model_type: str, tokens: int) -> Cost:
    """Take one row through a model, in this process."""
    torch.manual_seed(0)
    pass_of(kind, tiny(model_type, 32), 32)()  # warms up
    once = pass_of(kind, tiny(model_type, tokens), tokens)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of building the model
    before = memory_kib("VmRSS")
    once()
    grown = memory_kib("VmHWM") - before
    start, cpu_start = time.perf_counter(), time.process_time()
    once()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Cost(grown / KIB_PER_MIB, seconds, cpu_seconds)


def memory_kib(name: str) -> int:
    """Return a figure of this process as Linux tells it (proc(5))."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def in_a_fresh_process(kind: str, model_type: str, tokens: int) -> Cost:
    """Measure one kind of row."""
    argv = [sys.executable, "-m", "tests.benchmarks.monitors", "--measure", kind, model_type, str(tokens)]
    return Cost(**json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout))


def least(costs: list[Cost]) -> Cost:
    """Return the least of each figure."""
    return Cost(*(min(figures) for figures in zip(*map(dataclasses.astuple, costs), strict=True)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--models", nargs="+", choices=("gemma2", "gemma3_text"), default=["gemma2", "gemma3_text"])
    parser.add_argument(
        "--repeats", type=int, default=2, help="in turn, so that noise meets all alike; the least counts"
    )
    parser.add_argument("--measure", nargs=3, metavar=("KIND", "MODEL", "TOKENS"), help="one, here; prints JSON")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        kind, model_type, tokens = arguments.measure
        print(json.dumps(dataclasses.asdict(run(kind, model_type, int(tokens)))))
        return
    print("| model | tokens | row | seconds | CPU seconds | of a trained row | peak, MiB |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for model_type in arguments.models:
        for tokens in arguments.tokens:
            costs: dict[str, list[Cost]] = {kind: [] for kind in KINDS}
            for _ in range(arguments.repeats):
                for kind in KINDS:
                    costs[kind].append(in_a_fresh_process(kind, model_type, tokens))
            trained = least(costs["trained"])
            for kind in KINDS:
                cost = least(costs[kind])
                print(
                    f"| {model_type} | {tokens:,} | {kind} | {cost.seconds:.2f} | {cost.cpu_seconds:.2f} | "
                    f"{cost.cpu_seconds / trained.cpu_seconds:.2f} | {cost.mib:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
