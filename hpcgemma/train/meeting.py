"""Where ranks meet before they are a group: who has come, from which node, and how far each has got."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from hpcgemma.processes import node_name
from hpcgemma.runs.failure_signs import SICK_NODE_HINT
from hpcgemma.train.failures import SickNodeError

_CAME = "came"


class Meeting:
    """What the ranks tell each other through torch's store, which needs none of them to be a group yet.

    Args:
        store: The store, which is on rank 0's host.
        rank: This rank.
        world_size: All of them.
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self.store, self._rank, self._world_size = store, rank, world_size
        self.node = node_name(os.environ)

    def hold(self, timeout: timedelta) -> None:
        """Wait for all ranks.

        Raises:
            SickNodeError: Some did not come.
        """
        self.tell(_CAME)
        try:
            self.store.wait([_key(_CAME, rank) for rank in range(self._world_size)], timeout)
        except RuntimeError as error:
            missing = self.missing(_CAME)
            if not missing:
                raise
            raise SickNodeError(
                f"{self.names(missing)} did not start within {timeout.total_seconds():.0f} s",
                SICK_NODE_HINT,
                missing[0],
            ) from error

    def tell(self, word: str) -> None:
        """Say that this rank has got as far as a word."""
        self.store.set(_key(word, self._rank), self.node)

    def missing(self, word: str) -> list[int]:
        """Return the ranks that have not got as far as a word; none where rank 0's host does not answer."""
        with contextlib.suppress(RuntimeError):
            return [rank for rank in range(self._world_size) if not self.store.check([_key(word, rank)])]
        return []

    def names(self, ranks: Sequence[int]) -> str:
        """Return the names of ranks, with the nodes of those that came."""
        nodes = {rank: self._node_of(rank) for rank in ranks}
        return ", ".join(f"rank {rank}" + (f" on {node}" if node else "") for rank, node in nodes.items())

    def nodes_of(self, ranks: Sequence[int]) -> set[str]:
        """Return the nodes of ranks that came."""
        return {self._node_of(rank) for rank in ranks}

    def _node_of(self, rank: int) -> str:
        key = _key(_CAME, rank)
        return self.store.get(key).decode() if self.store.check([key]) else ""


def _key(word: str, rank: int) -> str:
    return f"hpcgemma/{word}/{rank}"
