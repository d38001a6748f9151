from __future__ import annotations

import pytest

from hpcgemma.walltime import format_walltime, parse_walltime


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("30", 30),
        ("30:00", 30),
        ("30:01", 31),
        ("04:00:00", 240),
        ("1-0", 1440),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("1-00:00:01", 1441),
    ],
)
def test_every_form_of_sbatch_is_read_in_minutes(text: str, minutes: int) -> None:
    assert parse_walltime(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "00:00:00", "abc", "1:2:3:4", "-5", "9999-0", "12:00:0x", "1;2"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not"):
        parse_walltime(text)


@pytest.mark.parametrize("minutes", [1, 59, 60, 1439, 1440, 2190])
def test_a_printed_walltime_reads_back_as_itself(minutes: int) -> None:
    assert parse_walltime(format_walltime(minutes)) == minutes
