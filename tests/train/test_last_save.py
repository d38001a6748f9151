"""Whether the last save is tried again."""

from __future__ import annotations

import errno

import pytest

from hpcgemma.train.environment import USUAL_NOTICE_S, read_environment
from hpcgemma.train.last_save import PASSING_ERRNOS, verdict
from hpcgemma.train.refusal import REFUSAL_ERRNOS, Refusal


def refusal(number: int | None) -> Refusal:
    return Refusal(number, "as the disk says")


@pytest.mark.parametrize(
    "number",
    [
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ESHUTDOWN,
        errno.ENOTCONN,
        errno.EIO,
        errno.EAGAIN,
        errno.ENOSPC,
        errno.EDQUOT,
        None,
    ],
)
def test_what_may_pass_is_tried_again_and_so_is_what_reads_back_otherwise(number: int | None) -> None:
    assert verdict(refusal(number), tries=1, left_s=60.0, longest_try_s=1.0).again_in_s == 1.0


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EBADF, 100_000])
def test_what_stays_and_what_is_not_known_is_not_tried_again(number: int) -> None:
    given_up = verdict(refusal(number), tries=1, left_s=1e9, longest_try_s=0.0)
    assert (given_up.again_in_s, given_up.why) == (None, "another try would not help")


def test_pauses_grow_up_to_eight_seconds() -> None:
    pauses = [
        verdict(refusal(errno.EIO), tries=tries, left_s=1e9, longest_try_s=0.0) for tries in (1, 2, 3, 4, 5, 5000)
    ]
    assert [each.again_in_s for each in pauses] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert pauses[2].why == "trying again in 4 s"


@pytest.mark.parametrize(("left_s", "again_in_s"), [(9.5, 4.0), (9.4, None), (0.0, None), (-3.0, None)])
def test_a_pause_and_the_longest_try_must_fit_in_the_time_left(left_s: float, again_in_s: float | None) -> None:
    assert verdict(refusal(errno.ESTALE), tries=3, left_s=left_s, longest_try_s=5.5).again_in_s == again_in_s


def test_why_there_is_no_other_try_is_said() -> None:
    assert verdict(refusal(errno.ESTALE), tries=3, left_s=9.0, longest_try_s=5.5).why == (
        "after 3 tries 9 s are left, and another, which may take 5.5 s, does not fit after a pause of 4 s"
    )
    assert verdict(refusal(errno.ESTALE), tries=1, left_s=-2.0, longest_try_s=5.5).why == (
        "after one try 0 s are left, and another, which may take 5.5 s, does not fit after a pause of 1 s"
    )


@pytest.mark.parametrize("number", sorted(REFUSAL_ERRNOS | PASSING_ERRNOS))
def test_an_error_of_the_disk_is_a_refusal_with_its_name_and_words(number: int) -> None:
    refused = Refusal.of(OSError(number, "as the disk says"))
    assert (refused.number, refused.name, refused.problem) == (number, errno.errorcode[number], "as the disk says")


def test_what_reads_back_otherwise_has_words_alone_and_what_is_no_fault_of_the_disk_is_raised() -> None:
    refused = Refusal.of(OSError("step-5 does not read back as it was written"))
    assert (refused.number, refused.name) == (None, None)
    assert refused.problem == "step-5 does not read back as it was written"
    with pytest.raises(FileNotFoundError):
        Refusal.of(FileNotFoundError(errno.ENOENT, "No such file or directory"))


@pytest.mark.parametrize(
    ("told", "notice_s"), [("285.0", 285.0), ("0", 0.0), ("-5", 0.0), ("x", USUAL_NOTICE_S), ("inf", USUAL_NOTICE_S)]
)
def test_the_notice_is_what_the_supervisor_tells_or_the_usual(told: str, notice_s: float) -> None:
    assert read_environment({"HPCGEMMA_NOTICE_S": told}).notice_s == notice_s
    assert read_environment({}).notice_s == USUAL_NOTICE_S
