"""Long tests begin early, those that wait run beside those that compute, and what shares a fixture stays together."""

from __future__ import annotations

from pathlib import Path

from tests.work_units import APART, turns, unit_of

ROOT = Path(__file__).parent.parent


def test_a_file_is_a_unit_but_for_those_whose_tests_are_apart() -> None:
    assert unit_of("tests/slurm/test_client.py::test_a[b::c]") == "tests/slurm/test_client.py"
    assert unit_of("tests/slurm/test_runs.py::test_a[b::c]") == "tests/slurm/test_runs.py::test_a[b::c]"
    assert [file for file in APART if not (ROOT / file).is_file()] == []


def test_long_folders_come_first_side_by_side_and_of_each_the_unit_of_most_tests() -> None:
    tests = ["tests/test_short.py::test_1"]
    tests += [f"tests/slurm/{name}" for name in ("test_1.py::test", "test_2.py::test_1", "test_2.py::test_2")]
    tests += [f"tests/train/{name}" for name in ("test_1.py::test", "test_2.py::test_1", "test_2.py::test_2")]
    tests += [f"tests/train/test_{number}.py::test" for number in (3, 4)]
    found = turns(tests)
    assert sorted(found, key=lambda unit: (found[unit], unit)) == [
        "tests/slurm/test_2.py",
        "tests/train/test_2.py",
        "tests/train/test_1.py",
        "tests/slurm/test_1.py",
        "tests/train/test_3.py",
        "tests/train/test_4.py",
        "tests/test_short.py",
    ]
