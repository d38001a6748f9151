"""Which rows a step takes is a pure function of the position, and not of ranks or micro-batch."""

from __future__ import annotations

import numpy as np
import pytest

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import TrainingSpec
from hpcgemma.train.data.order import RowStream, epoch_order, micro_batches_of_rank, total_steps


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
