"""What the loss of a large vocabulary costs: memory and seconds of forward and backward, each variant its own process.

Run it with `python -m tests.benchmarks.loss_memory`; the table goes into docs/benchmarks.md. The peak is what a process
grows by over its inputs: the logits, whatever is made of them, and the gradients. Times are compared by the processor's
seconds, which other work on the machine stretches less. torch's default, minutes long, runs if `--variants` names it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import LinearCrossEntropyOptions, functional

from hpcgemma.train.linear_loss import summed_cross_entropy

KIB_PER_GIB = 1 << 20
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor]


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """As transformers computes it."""
    logits = functional.linear(hidden, weight)
    if softcap is not None:
        logits = logits / softcap
        logits = torch.tanh(logits)
        logits = logits * softcap
    return functional.cross_entropy(logits.float(), labels, reduction="sum")


def chunked(chunk_tokens: int) -> Loss:
    """Ours."""
    return lambda hidden, weight, labels, softcap: summed_cross_entropy(
        hidden, weight, labels, softcap=softcap, chunk_tokens=chunk_tokens
    )


def torch_chunked(options: LinearCrossEntropyOptions) -> Loss:
    """torch's own; without a softcap, as it has none."""
    return lambda hidden, weight, labels, softcap: functional.linear_cross_entropy(
        hidden, weight, labels, reduction="sum", options=options
    )


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one forward and backward took."""

    gib: float
    """By which the process had grown at its peak."""
    seconds: float
    cpu_seconds: float
    """Of all cores together."""


VARIANTS: dict[str, Loss] = {
    "plain": plain,
    "hpcgemma, 1024 tokens": chunked(1024),
    "hpcgemma, 256 tokens": chunked(256),
    "torch, 1024 tokens": torch_chunked(LinearCrossEntropyOptions(batch_chunk_size=1024)),
    "torch, 256 tokens": torch_chunked(LinearCrossEntropyOptions(batch_chunk_size=256)),
    "torch, default": torch_chunked(LinearCrossEntropyOptions()),
}


def run(loss: Loss, tokens: int, hidden: int, vocabulary: int, arguments: argparse.Namespace) -> Cost:
    """Run forward and backward once, in this process."""
    torch.manual_seed(0)
    hidden_ND = torch.empty(tokens, hidden).normal_().requires_grad_()
    weight_VD = torch.empty(vocabulary, hidden).normal_(std=0.02).requires_grad_(not arguments.frozen_head)
    labels_N = torch.randint(vocabulary, (tokens,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu_start = time.perf_counter(), time.process_time()
    torch.autograd.backward(loss(hidden_ND, weight_VD, labels_N, arguments.softcap))
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return Cost(grown / KIB_PER_GIB, seconds, cpu_seconds)


def in_a_fresh_process(name: str) -> Cost:
    """Measure one variant with this process's own arguments."""
    argv = [sys.executable, "-m", "tests.benchmarks.loss_memory", *sys.argv[1:], "--measure", name]
    return Cost(**json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout))


def least(costs: list[Cost]) -> Cost:
    """Return the least of each figure."""
    return Cost(*(min(figures) for figures in zip(*map(dataclasses.astuple, costs), strict=True)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=640)
    parser.add_argument("--vocabulary", type=int, default=262_144)
    parser.add_argument("--softcap", type=float, default=None, help="leaves out torch's own, which has none")
    parser.add_argument("--frozen-head", action="store_true", help="as under LoRA")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS)[:-1])
    parser.add_argument(
        "--repeats", type=int, default=1, help="in turn, so that noise meets all alike; the least counts"
    )
    parser.add_argument("--measure", choices=list(VARIANTS), help="one, in this process; prints JSON")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        loss = VARIANTS[arguments.measure]
        run(loss, 2, 16, 64, arguments)  # warms up
        cost = run(loss, arguments.tokens, arguments.hidden, arguments.vocabulary, arguments)
        print(json.dumps(dataclasses.asdict(cost)))
        return
    names = [name for name in arguments.variants if arguments.softcap is None or not name.startswith("torch")]
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:
            costs[name].append(in_a_fresh_process(name))
    first = least(costs[names[0]])
    print("| loss | peak, GiB | seconds | CPU seconds | of the memory | of the CPU seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in names:
        cost = least(costs[name])
        shares = f"{cost.gib / first.gib:.2f} | {cost.cpu_seconds / first.cpu_seconds:.2f}"
        print(f"| {name} | {cost.gib:.2f} | {cost.seconds:.1f} | {cost.cpu_seconds:.1f} | {shares} |")


if __name__ == "__main__":
    main()
