"""Where the supervisor is: which job, on which host, with which ports and cores."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass


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


def free_port() -> int:
    """Return a port of this host that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def rank_threads(ranks_per_node: int, cpus_per_rank: int | None) -> int:
    """Return the OpenMP threads of a rank: its CPUs, so that the ranks of a node do not fight for cores."""
    if cpus_per_rank:
        return cpus_per_rank
    return max(1, len(os.sched_getaffinity(0)) // ranks_per_node)
