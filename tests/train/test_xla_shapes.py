"""What XLA needs that can be checked without it: batches of few shapes, and what only fills them up does not count."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hpcgemma.errors import HpcGemmaError
from hpcgemma.recipes.types import Recipe
from hpcgemma.train.attention import Demands, choose_attention
from hpcgemma.train.data.batches import MicroBatch, TrainingBatches, collate
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.environment import choose_device, read_environment
from hpcgemma.train.linear_loss import summed_cross_entropy
from hpcgemma.train.strategies.xla_shapes import NO_LABEL, Shapes
from tests.train.launch import recipe_with

ROWS = {"training.micro_batch": 4, "training.eval_micro_batch": 2}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.model_validate(recipe_with(ROWS))


def shape_of(batch: MicroBatch) -> tuple[tuple[int, ...], int, int]:
    return tuple(batch.ids_BT.shape), len(batch.positions_N), len(batch.labels_N)


def test_all_batches_of_a_training_have_one_shape_and_those_of_its_evaluations_another(
    prepared: PreparedData, recipe: Recipe
) -> None:
    shapes = Shapes.of(prepared, recipe.training)
    batches = TrainingBatches(prepared, recipe, rank=0, world_size=2)
    trained = {shape_of(shapes.fill(batches[number])) for number in range(60)}
    rows = prepared.eval.longest(len(prepared.eval))
    held_out = {shape_of(shapes.fill(collate(prepared.eval, rows[at : at + 2], 0))) for at in range(0, len(rows), 2)}
    assert trained == {((4, shapes.width), shapes.targets[4], shapes.targets[4])}
    assert held_out == {((2, shapes.width), shapes.targets[2], shapes.targets[2])}
    assert len(rows) % 2 == 1  # the last was filled up with a row
    assert shapes.width % 128 == 0
    assert all(count % 128 == 0 for count in shapes.targets.values())


def test_a_filled_batch_learns_the_same_tokens_at_the_same_places(prepared: PreparedData, recipe: Recipe) -> None:
    batch = collate(prepared.train, np.array([3, 1, 4]), 0)
    filled = Shapes.of(prepared, recipe.training).fill(batch)
    count, (rows, width) = len(batch.labels_N), batch.ids_BT.shape
    assert torch.equal(filled.ids_BT[:rows, :width], batch.ids_BT)
    assert torch.equal(filled.labels_N[:count], batch.labels_N)
    assert (filled.labels_N[count:] == NO_LABEL).all()
    # Tokens that count up show where a position leads.
    numbers = torch.arange(batch.ids_BT.numel()).reshape(rows, width)
    wider = torch.nn.functional.pad(numbers, (0, filled.ids_BT.shape[1] - width))
    assert torch.equal(wider.flatten()[filled.positions_N[:count]], batch.positions_N)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_token_that_does_not_count_adds_nothing_to_loss_or_gradient(
    dtype: torch.dtype, softcap: float | None
) -> None:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(9, 8), torch.randn(31, 8), torch.randn(31)
    labels, counts = torch.randint(31, (9,)), torch.tensor([True, False, True, True, False, False, True, True, False])

    def result(kept: torch.Tensor, counting: torch.Tensor | None) -> list[torch.Tensor]:
        leaves = [each.to(dtype).requires_grad_() for each in (hidden, weight, bias)]
        options: dict[str, Any] = {"counts_N": counting, "bias_V": leaves[2], "softcap": softcap, "chunk_tokens": 2}
        loss = summed_cross_entropy(leaves[0][kept], leaves[1], labels[kept], **options)
        loss.backward()  # type: ignore[no-untyped-call]
        return [loss.detach(), *(each.grad for each in leaves if each.grad is not None)]

    everything = torch.ones_like(counts)
    for ours, expected in zip(result(everything, counts), result(counts, None), strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_xla_takes_eager_attention_and_says_why(recipe: Recipe) -> None:
    demands = Demands(softcap=None, head_size=256, dropout=0.0, has_images=False)
    model_class = SimpleNamespace(
        __name__="Gemma", _supports_sdpa=True, _supports_flash_attn=True, _supports_flex_attn=True
    )
    name, reason = choose_attention(recipe, demands, model_class, torch.device("xla"))
    assert name == "eager"
    assert "not sdpa: XLA makes the same operations of it" in reason


def test_xla_is_refused_on_a_gpu() -> None:
    with pytest.raises(HpcGemmaError, match=r"strategy\.name xla computes on a TPU, and HPCGEMMA_DEVICE is cuda"):
        choose_device(read_environment({"HPCGEMMA_DEVICE": "cuda"}), on_xla=True)


def test_a_missing_torch_xla_is_named_with_the_way_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_xla", None)
    with pytest.raises(HpcGemmaError, match="torch_xla cannot be loaded beside torch") as caught:
        choose_device(read_environment({}), on_xla=True)
    assert "pip install 'hpcgemma[xla]' in an environment of its own" in str(caught.value.hint)
