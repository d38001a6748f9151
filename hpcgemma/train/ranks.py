"""The ranks of an attempt and how they agree: small messages over gloo, between CPUs.

Agreement never goes through NCCL, so it costs no GPU synchronisation and works while a GPU is busy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hpcgemma.train.environment import Environment
from hpcgemma.train.meeting import Meeting

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for its peers; as long as the largest checkpoint may take to write."""

MEETING_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others to start; they import torch from a shared file system at the same time."""

_CPU = torch.device("cpu")


class Ranks:
    """This rank among all. Every method with peers must be called by all ranks, in the same order.

    Args:
        environment: This rank's place.
        device: What it computes on.
    """

    def __init__(self, environment: Environment, device: torch.device) -> None:
        self.rank = environment.rank
        self.world_size = environment.world_size
        self.local_rank = environment.local_rank
        self.meeting: Meeting | None = None
        """Where the ranks have met; None for one that is alone."""
        if self.world_size > 1:
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            distributed: Any = dist  # its type stubs do not name the store
            self.meeting = Meeting(
                distributed.TCPStore(
                    os.environ["MASTER_ADDR"],
                    int(os.environ["MASTER_PORT"]),
                    self.world_size,
                    is_master=self.is_first,
                    timeout=MEETING_TIMEOUT,
                    wait_for_workers=False,
                ),
                self.rank,
                self.world_size,
            )
            self.meeting.hold(MEETING_TIMEOUT)
            dist.init_process_group(
                backend, store=self.meeting.store, rank=self.rank, world_size=self.world_size, timeout=TIMEOUT
            )

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes what is written once."""
        return self.rank == 0

    def highest(self, number: int) -> int:
        """Return the highest of all ranks' numbers."""
        if self.world_size == 1:
            return number
        tensor = torch.tensor(number, dtype=torch.int64)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums over all ranks, number by number, in double precision."""
        if self.world_size == 1:
            return list(numbers)
        tensor = torch.tensor(list(numbers), dtype=torch.float64)
        dist.all_reduce(tensor)
        return [float(number) for number in tensor]

    def from_first(self, value: T) -> T:
        """Return rank 0's value on all ranks."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=_CPU)
        return box[0]

    @property
    def per_node(self) -> int:
        """Ranks of each node; all ranks together."""
        return self.world_size // self.collect(self.local_rank).count(0)

    def collect(self, value: T) -> list[T]:
        """Return the values of all ranks, in the ranks' order, on all ranks."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return [each for each in values if each is not None]

    def group_of_its_own(self) -> dist.ProcessGroup | None:
        """Return all ranks as another group over gloo, for a thread that agrees beside this one; None for one rank."""
        if self.world_size == 1:
            return None
        group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=TIMEOUT)
        return group

    def leave(self) -> None:
        """Part from the peers, once all are here."""
        if self.world_size > 1:
            self.highest(0)
            dist.destroy_process_group()
