"""Every recipe on one GPU, at its own size where that fits: `make test-gpu` runs these and prints a table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu.throughput import HEADING, measure

# What one GPU of 80 GB cannot hold is measured with fewer layers; MFU hardly depends on their number.
RECIPES: dict[str, list[str]] = {
    "gemma3_270m_tpu": ["training.micro_batch=32", "training.global_batch=32"],
    "gemma2_2b_qlora": [],
    "gemma3_4b_cpt": ["training.micro_batch=2", "training.global_batch=2"],
    "gemma3_4b_vlm": [],
    "gemma2_9b_lora": [],
    "qwen2_5_14b_qlora": [],
    "gemma3_27b_qlora": [],
    "gemma3_27b_sft": ["model.config.num_hidden_layers=8"],
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_on_a_gpu_and_its_speed_is_said(recipe: str, tmp_path: Path) -> None:
    found = measure(recipe, tmp_path, "cuda", RECIPES[recipe])
    print(
        f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, {' '.join(RECIPES[recipe])}\n{HEADING}\n{found}"
    )
    assert found.tokens_per_s > 0
    assert found.peak_memory_gib is not None


def test_the_same_measurement_works_without_a_gpu(tmp_path: Path) -> None:
    found = measure("svg_captions_tiny", tmp_path, "cpu")
    assert found.tokens_per_s > 0
    assert found.tokens_per_row == pytest.approx(200, abs=100)
    assert (found.mfu, found.peak_memory_gib) == (None, None)
