"""Which rows a step takes is a pure function of the position, and not of ranks or micro-batch."""

from __future__ import annotations

import numpy as np
import pytest

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import TrainingSpec
from hpcgemma.train.data.order import RowStream, epoch_order, micro_batches_of_rank, total_steps
from hpcgemma.train.data.samples import Part


def test_an_epoch_holds_every_row_once_and_each_epoch_has_its_own_order() -> None:
    first, second = epoch_order(100, 7, 0), epoch_order(100, 7, 1)
    assert sorted(first) == sorted(second) == list(range(100))
    assert list(first) != list(second)
    assert list(first) == list(epoch_order(100, 7, 0))


def test_the_order_stays_the_same_from_version_to_version() -> None:
    assert epoch_order(10, 0, 0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]


def test_the_stream_can_be_entered_anywhere() -> None:
    whole = RowStream(10, 3).rows_at(0, 35)
    for position in (0, 8, 9, 10, 27):
        assert RowStream(10, 3).rows_at(position, 8).tolist() == whole[position : position + 8].tolist()


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 1), (1, 8), (2, 2), (4, 2)])
def test_ranks_share_a_step_without_gap_or_overlap(world_size: int, micro_batch: int) -> None:
    lengths_N = np.arange(100, 0, -1)
    batch = epoch_order(100, 0, 0)[:16]
    shares = [
        micro_batches_of_rank(batch, lengths_N, rank=rank, world_size=world_size, micro_batch=micro_batch)
        for rank in range(world_size)
    ]
    assert all(len(part) == micro_batch for share in shares for part in share)
    assert sorted(row for share in shares for part in share for row in part) == sorted(batch)


def test_rows_padded_together_are_alike_and_the_longest_come_first() -> None:
    lengths_N = np.asarray([5, 90, 7, 80, 6, 70, 8, 60])
    parts = micro_batches_of_rank(np.arange(8), lengths_N, rank=0, world_size=1, micro_batch=4)
    assert [part.tolist() for part in parts] == [[1, 3, 5, 7], [6, 2, 4, 0]]


def test_steps_are_the_epochs_rows_in_whole_batches() -> None:
    assert total_steps(320, TrainingSpec(epochs=0.1, global_batch=16)) == 2
    assert total_steps(41, TrainingSpec(epochs=12.0, global_batch=8)) == 61
    assert total_steps(41, TrainingSpec(epochs=12.0, global_batch=8, max_steps=5)) == 5


def test_a_training_of_no_step_is_refused() -> None:
    with pytest.raises(InputError, match=r"training\.epochs 1 of 10 rows do not fill one training\.global_batch of 16"):
        total_steps(10, TrainingSpec(epochs=1.0, global_batch=16))


def test_parts_of_weight_one_have_the_order_of_one_part() -> None:
    parts = [Part(0, 4), Part(4, 7)]
    assert RowStream(parts, 3).rows_at(0, 40).tolist() == RowStream(11, 3).rows_at(0, 40).tolist()
    assert RowStream(11, 3).rows_at(0, 22).tolist() == [*epoch_order(11, 3, 0), *epoch_order(11, 3, 1)]


def test_a_weight_says_how_often_each_sample_is_taken() -> None:
    stream = RowStream([Part(0, 6, 0.5), Part(6, 5, 2.0)], 3)  # 3 + 10 samples an epoch
    first, second = stream.rows_at(0, 13).tolist(), stream.rows_at(13, 13).tolist()
    for epoch in (first, second):
        assert sorted(sample for sample in epoch if sample >= 6) == sorted([*range(6, 11)] * 2)
    halves = [sorted(sample for sample in epoch if sample < 6) for epoch in (first, second)]
    assert sorted(halves[0] + halves[1]) == list(range(6))
    assert first != second


def test_a_part_goes_through_its_samples_evenly_whatever_its_weight() -> None:
    taken = RowStream([Part(0, 7, 0.3), Part(7, 5, 1.5)], 1)
    samples = taken.rows_at(0, 35 * 10).tolist()  # 2 + 8 an epoch
    assert {samples.count(sample) for sample in range(7)} == {10}
    assert {samples.count(sample) for sample in range(7, 12)} == {56}


def test_a_weighted_stream_can_be_entered_anywhere() -> None:
    parts = [Part(0, 6, 0.7), Part(6, 5, 2.4)]
    whole = RowStream(parts, 3).rows_at(0, 80)
    for position in (0, 7, 15, 16, 33, 64):
        assert RowStream(parts, 3).rows_at(position, 9).tolist() == whole[position : position + 9].tolist()


def test_packs_are_called_packs_where_they_are_too_few() -> None:
    with pytest.raises(InputError, match="of 10 packs do not fill one"):
        total_steps(10, TrainingSpec(epochs=1.0, global_batch=16), "packs")
