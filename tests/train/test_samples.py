"""What a step counts: rows, or packs of rows, in parts with weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hpcgemma.recipes.types import Recipe
from hpcgemma.train.data.batches import TrainingBatches
from hpcgemma.train.data.packing import Packs
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.samples import Part, Samples
from hpcgemma.train.data.summary import SUMMARY_NAME
from hpcgemma.train.data.token_rows import TokenRows
from hpcgemma.train.introduction import describe_samples
from tests.train.launch import recipe_with
from tests.train.packed import CAPACITY, random_rows, write_prepared

ROWS = TokenRows.of(random_rows([20, 30, 9, 25]))
PACKS = Packs(np.array([0, 2, 1, 3]), np.array([0, 2, 4]))


def test_unpacked_samples_are_rows() -> None:
    samples = Samples.of(ROWS)
    assert (len(samples), samples.unit, samples.per_epoch) == (4, "rows", 4)
    assert samples.lengths_S.tolist() == [20, 30, 9, 25]
    assert samples.targets_S.tolist() == [10, 15, 5, 13]
    assert [samples.rows_of(sample).tolist() for sample in range(4)] == [[0], [1], [2], [3]]
    assert samples.longest(2).tolist() == [1, 3]


def test_packed_samples_add_up_their_rows() -> None:
    samples = Samples.of(ROWS, PACKS)
    assert (len(samples), samples.unit, samples.parts) == (2, "packs", (Part(0, 2, 1.0),))
    assert samples.lengths_S.tolist() == [29, 55]
    assert samples.targets_S.tolist() == [15, 28]
    assert [samples.rows_of(sample).tolist() for sample in range(2)] == [[0, 2], [1, 3]]
    assert samples.longest(1).tolist() == [1]


def test_a_rows_first_token_does_not_count_as_learned() -> None:
    row = random_rows([4])[0]
    row.is_target[:] = [True] * 4
    assert Samples.of(TokenRows.of([row, row]), Packs(np.array([0, 1]), np.array([0, 2]))).targets_S.tolist() == [6]


@pytest.mark.parametrize(("weight", "per_epoch"), [(1.0, 10), (0.5, 5), (2.0, 20), (0.01, 1)])
def test_a_part_gives_as_many_samples_as_its_weight_says(weight: float, per_epoch: int) -> None:
    assert Part(0, 10, weight).per_epoch == per_epoch


def test_the_summary_says_the_parts_of_prepared_data(tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    write_prepared(folder)
    packs = len(PreparedData.open(folder).samples)
    assert PreparedData.open(folder).samples.parts == (Part(0, packs),)
    summary = json.loads((folder / SUMMARY_NAME).read_text())
    summary["parts"] = [
        {"first": 0, "count": 3, "weight": 2.0},
        {"first": 3, "count": packs - 3, "weight": 1},
    ]
    (folder / SUMMARY_NAME).write_text(json.dumps(summary))
    samples = PreparedData.open(folder).samples
    assert samples.parts == (Part(0, 3, 2.0), Part(3, packs - 3, 1.0))
    assert samples.per_epoch == packs + 3


def test_a_packed_batch_is_as_wide_as_a_pack_and_counts_what_is_learned(tmp_path: Path) -> None:
    write_prepared(tmp_path / "prepared")
    recipe = Recipe.model_validate(recipe_with({"data.max_length": CAPACITY, "data.packing": True}))
    ranks = [
        TrainingBatches(PreparedData.open(tmp_path / "prepared"), recipe, rank=rank, world_size=2) for rank in (0, 1)
    ]
    for step in range(3):
        parts = [batches[step * batches.per_step + place] for batches in ranks for place in range(batches.per_step)]
        assert {tuple(part.ids_BT.shape) for part in parts} == {(2, CAPACITY)}
        assert sum(len(part.labels_N) for part in parts) == ranks[0].tokens_of_step(step)[1]


def test_packs_and_weights_are_said_before_the_first_step() -> None:
    recipe = Recipe.model_validate(recipe_with({"data.max_length": CAPACITY, "data.packing": True}))
    samples = Samples.of(ROWS, PACKS, [Part(0, 1, 2.0), Part(1, 1)])
    assert describe_samples(recipe, samples, world_size=2, passes=2)[:1] == [
        "packing: 4 rows in 2 packs of 64 tokens, 65.6% filled; without it 16.0% of a batch would be padding"
    ]
    assert describe_samples(recipe, samples, world_size=2, passes=2)[1:] == [
        "tokens per step: 2 x 2 ranks x 2 accumulated x 64 = 512 places",
        "mixture: 3 packs an epoch = 2 of 1 (x 2) + 1 of 1 (x 1)",
        "step: 8 packs = micro-batch 2 x 2 ranks x 2 accumulated",
    ]


def test_the_tokens_of_a_step_are_said_as_arithmetic() -> None:
    changes = {"data.max_length": 8192, "training.global_batch": 64, "training.micro_batch": 8}
    recipe = Recipe.model_validate(recipe_with({**changes, "data.packing": True}))
    assert describe_samples(recipe, Samples.of(ROWS, PACKS), world_size=8, passes=1)[1] == (
        "tokens per step: 8 x 8 ranks x 1 accumulated x 8,192 = 524K places"
    )
