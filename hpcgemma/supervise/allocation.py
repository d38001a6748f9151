"""Where the supervisor is: which job, on which host, with which ports and cores."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcgemma.slurm.values import host_names

_GIVEN_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT = 10_000
"""Above the usual ports of services, Slurm's 6817 to 6819 among them."""
_TRIES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """The job that this supervisor runs in."""

    job_id: str
    on_slurm: bool
    host: str
    """Name of this host; the first of the job, where rank 0 is."""
    node_list: str
    restarts: int
    """How often this very job was requeued; Slurm leaves the variable unset the first time."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes, in the order of their ranks."""
        return tuple(host_names(self.node_list))

    def node_of(self, rank: int | None, ranks_per_node: int) -> str | None:
        """Return the node of a rank; None where it is not known. Ranks fill one node after the other."""
        nodes = self.nodes
        index = len(nodes) if rank is None else rank // ranks_per_node
        return nodes[index] if index < len(nodes) else None


def read_allocation(environment: Mapping[str, str]) -> Allocation:
    """Return the allocation that the environment describes."""
    host = socket.gethostname()
    on_slurm = environment.get("SUBMITIT_EXECUTOR") != "local"
    return Allocation(
        job_id=environment["SLURM_JOB_ID" if on_slurm else "SUBMITIT_LOCAL_JOB_ID"],
        on_slurm=on_slurm,
        host=host,
        node_list=environment.get("SLURM_JOB_NODELIST", host),
        restarts=int(environment.get("SLURM_RESTART_COUNT", "0")),
    )


def free_port(given_out: Path = _GIVEN_OUT) -> int:
    """Return a port of this host that nothing listens on at the moment, for rank 0 to listen on.

    Rank 0 first imports for seconds. A port that Linux gives to whoever asks for any (ip(7), ip_local_port_range)
    could be somebody else's by then, so it is one below those.

    Args:
        given_out: The file of /proc that says which those are.
    """
    try:
        first_given_out = int(given_out.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        first_given_out = 0
    below = range(_FIRST_PORT, first_given_out)
    tries = [*random.sample(below, min(len(below), _TRIES)), 0]  # 0: any
    for port in tries:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return int(probe.getsockname()[1])
    raise OSError(errno.EADDRINUSE, "no free port was found")


def rank_threads(ranks_per_node: int, cpus_per_rank: int | None) -> int:
    """Return the OpenMP threads of a rank: its CPUs, so that the ranks of a node do not fight for cores."""
    if cpus_per_rank:
        return cpus_per_rank
    return max(1, len(os.sched_getaffinity(0)) // ranks_per_node)
