"""The part of pytest-xdist that is ours: what it calls a scope is a unit of ``work_units.py``.

Its own mark ``xdist_group`` does nothing under pytest 9.2 (pytest-xdist issue 1386).
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

from tests.work_units import unit_of


class UnitScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist says no types
    """Deals out whole units, in the order of the collection."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
