from __future__ import annotations

from hpcgemma.supervise.straggler import Straggler, StragglerWatch

PART = "reading the rows of a step"


def found(watch: StragglerWatch, seconds: range, **own_s: float) -> list[Straggler]:
    """Look each second at ranks r0, r1 … of unchanging speed, and return all that is reported."""
    by_rank = {int(rank[1:]): own for rank, own in own_s.items()}
    return [each for now in seconds for each in watch.look(by_rank, float(now))]


def test_a_rank_that_is_slower_for_a_minute_is_reported_once() -> None:
    watch = StragglerWatch(PART)
    assert found(watch, range(60), r0=1.0, r1=1.1, r2=2.0, r3=0.9) == []
    [slow] = found(watch, range(60, 500), r0=1.0, r1=1.1, r2=2.0, r3=0.9)
    assert slow == Straggler(rank=2, part=PART, own_s=2.0, others_s=1.0)
    assert slow.sentence == (
        "rank 2 is slow: reading the rows of a step takes 2.00 s; the others take 1.00 s and wait for it"
    )


def test_of_two_ranks_the_slower_one_is_reported() -> None:
    assert [each.rank for each in found(StragglerWatch(PART), range(100), r0=1.0, r1=2.0)] == [1]


def test_a_rank_that_recovers_is_not_reported() -> None:
    watch = StragglerWatch(PART)
    for start in range(0, 600, 50):
        assert found(watch, range(start, start + 49), r0=1.0, r1=2.0) == []
        assert found(watch, range(start + 49, start + 50), r0=1.0, r1=1.0) == []


def test_ranks_that_differ_little_or_are_alone_are_not_slow() -> None:
    assert found(StragglerWatch(PART), range(500), r0=1.0, r1=1.4) == []
    assert found(StragglerWatch(PART), range(500), r0=0.001, r1=0.015) == []
    assert found(StragglerWatch(PART), range(500), r0=5.0) == []
