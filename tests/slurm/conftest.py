"""Fixtures of the tests that need a real Slurm; without one they are skipped with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import SlurmCluster, cgroup_available, missing_reason

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, and skip it where no Slurm can be started."""
    reason = missing_reason()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if reason is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


def require_cgroup() -> None:
    """Skip the test where this machine cannot track processes by cgroup."""
    if not cgroup_available():
        pytest.skip("this machine has no writable cgroup v1 freezer, which proctrack/cgroup needs")


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A cluster with accounting, shared by all tests of the session: leave it as you found it."""
    with SlurmCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[SlurmCluster]:
    """A cluster of this module's own without accounting; it starts in a second."""
    with SlurmCluster(accounting=False, grace_time_s=60, kill_wait_s=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cgroup_cluster() -> Iterator[SlurmCluster]:
    """A cluster that tracks processes by cgroup, as production does, where this machine has cgroup v1."""
    require_cgroup()
    with SlurmCluster(accounting=False, proctrack="cgroup", grace_time_s=60, kill_wait_s=1) as cluster:
        yield cluster
