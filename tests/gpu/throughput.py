"""How fast a recipe trains on one device: tokens per second, model FLOPs utilization, peak memory.

Random weights of the recipe's own shape, rows of its own length: nothing is downloaded, and speed does not depend on
what the weights are.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from hpcgemma.files import read_json_lines
from hpcgemma.memory import count_parameters
from hpcgemma.recipes import load_recipe
from hpcgemma.recipes.types import Recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.shapes import TextShape, layer_parameters, shape_of
from hpcgemma.train.data.svg_captions import draw_rows

STEPS = 10
FIRST_STEPS = 4
"""Steps that are not counted: kernels are chosen, and compiled, in them."""
TOKENS_PER_DRAWING = 80
"""With its caption; a little more than the tokenizer that is trained on them needs."""
ROWS = 64
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
    "V100": 125.0,
}
"""Dense bf16 (V100: fp16) TFLOP/s by a part of the GPU's name, from the makers' data sheets; the SXM form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """What was measured."""

    recipe: str
    tokens_per_row: float
    tokens_per_s: float
    """Median over the counted steps."""
    mfu: float | None
    """Share of the device's peak; None where that is not known."""
    peak_memory_gib: float | None

    def __str__(self) -> str:
        mfu = "unknown" if self.mfu is None else f"{self.mfu:.1%}"
        memory = "unknown" if self.peak_memory_gib is None else f"{self.peak_memory_gib:.1f} GiB"
        return f"| {self.recipe} | {self.tokens_per_row:,.0f} | {self.tokens_per_s:,.0f} | {mfu} | {memory} |"


HEADING = "| recipe | tokens per row | tokens/s | MFU | peak memory |\n|---|---:|---:|---:|---:|"


def measure(recipe_name: str, folder: Path, device: str, settings: Sequence[str] = ()) -> Throughput:
    """Train a few steps of a recipe on one device and return how fast that was.

    Args:
        recipe_name: Which recipe.
        folder: An empty folder to work in.
        device: cuda or cpu.
        settings: Changes to the recipe, as after ``--set``.
    """
    recipe = load_recipe(recipe_name, _settings(recipe_name, folder, settings))
    write_rows(folder / "rows.jsonl", recipe.data.max_length)
    run = RunFolder(folder / "run")
    run.path.mkdir(mode=0o700)
    content = {"run_id": recipe_name, "recipe": recipe.model_dump(mode="json")}
    run.run_file.write_text(yaml.safe_dump(content), encoding="utf-8")
    environment = os.environ | {"HPCGEMMA_DEVICE": device, "HPCGEMMA_ATTEMPT": "1"}
    for module in ("hpcgemma.train.prepare", "hpcgemma.train"):
        ended = subprocess.run(
            [sys.executable, "-m", module, str(run.path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout
    lines = [line for line in read_json_lines(run.metrics_file) if "loss" in line]
    tokens_per_s = statistics.median(line["tokens_per_s"] for line in lines[FIRST_STEPS:])
    tokens_per_row = sum(line["tokens"] for line in lines) / (len(lines) * recipe.training.global_batch)
    peak = _peak_flops(device)
    return Throughput(
        recipe=recipe_name,
        tokens_per_row=tokens_per_row,
        tokens_per_s=tokens_per_s,
        mfu=None if peak is None else tokens_per_s * flops_per_token(recipe, tokens_per_row) / peak,
        peak_memory_gib=lines[-1]["peak_memory_gib"],
    )


def flops_per_token(recipe: Recipe, tokens_per_row: float) -> float:
    """Return the floating-point operations that one token of a training step needs.

    Two for each weight that multiplies it, forward and again backward for the gradient of its input, and two more for
    that of each trained weight; attention over the whole row. What activation checkpointing computes again is not
    counted. Source: Chowdhery et al. 2022, PaLM, appendix B, with frozen weights taken into account.
    """
    shape = shape_of(recipe.model.config, recipe.model.kind)
    assert shape is not None
    text: TextShape = shape.text
    multiplying = text.layers * layer_parameters(text) + text.vocab_size * text.hidden_size
    counted = count_parameters(recipe, shape)
    trained = multiplying if recipe.lora is None else counted.adapters + counted.whole
    attention = 12 * text.layers * text.heads * text.head_dim * tokens_per_row
    return 4.0 * multiplying + 2.0 * trained + attention


def write_rows(path: Path, max_length: int) -> None:
    """Write rows nearly as long as a recipe takes them: some drawings, and what they show."""
    drawings_per_row = max(1, max_length // TOKENS_PER_DRAWING)
    drawings, _ = draw_rows(ROWS * drawings_per_row, 1, 0)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, len(drawings), drawings_per_row):
            some = drawings[start : start + drawings_per_row]
            row = {
                "prompt": "\n".join(each.svg for each in some),
                "completion": "\n".join(each.caption for each in some),
            }
            file.write(json.dumps(row) + "\n")


def _settings(recipe_name: str, folder: Path, settings: Sequence[str]) -> list[str]:
    """Return what one device and no download change in a recipe."""
    training = load_recipe(recipe_name).training
    return [
        "model.path=null",
        "tokenizer.train_vocab_size=512",
        f"data.train={folder / 'rows.jsonl'}",
        "data.generator=null",
        "data.format=prompt_completion",
        "resources.nodes=1",
        "resources.gpus_per_node=1",
        "strategy={name: ddp}",
        f"training.global_batch={training.micro_batch}",
        f"training.max_steps={STEPS}",
        "training.log_every_steps=1",
        "training.epochs=1000",
        "evaluation={every_steps: null, best_at_end: false}",
        f"checkpoint.every_steps={10 * STEPS}",
        *settings,
    ]


def _peak_flops(device: str) -> float | None:
    if device != "cuda":
        return None
    import torch

    name = torch.cuda.get_device_name()
    return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
