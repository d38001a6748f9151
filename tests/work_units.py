"""How the tests are dealt out to the workers of ``make test``: in units that one worker must have, long ones first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

APART = (
    "tests/faults/test_matrix.py",
    "tests/local/test_disks.py",
    "tests/local/test_scenarios.py",
    "tests/slurm/test_runs.py",
    "tests/train/test_resume_is_exact.py",
    "tests/train/test_strategies.py",
    "tests/train/test_training.py",
)
"""Files whose tests any worker may take. What they share is soon made, or made once for all (``tests/shared.py``)."""

LONG = ("tests/slurm", "tests/faults", "tests/local", "tests/train")
"""Folders whose tests take long. Those of slurm, faults and local mostly wait, those of train mostly compute."""


def unit_of(test: str) -> str:
    """Return the unit of a test, both by pytest's ids: the test alone where it is apart, else its file."""
    file = test.partition("::")[0]
    return test if file in APART else file


def turns(tests: Sequence[str]) -> dict[str, float]:
    """Return each unit's turn, the lower the earlier.

    The long folders come first, so that no worker has a long test left at the end; and side by side, so that some
    workers wait while others compute. Of a folder, the units of many tests come first.
    """
    sizes = Counter(unit_of(test) for test in tests)
    found = dict.fromkeys(sizes, 1.0)
    for folder in LONG:
        units = sorted((unit for unit in sizes if unit.startswith(f"{folder}/")), key=lambda unit: -sizes[unit])
        found |= {unit: place / len(units) for place, unit in enumerate(units)}
    return found
