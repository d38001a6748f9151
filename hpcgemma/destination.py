"""Where a job goes: what Slurm says of its partition, and what becomes of jobs there."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgemma.errors import InputError
from hpcgemma.fate import Preemption, preemption_of
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.site import Partition, Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A cluster, one of its partitions, and how jobs are preempted there."""

    site: Site
    partition: Partition
    preemption: Preemption


def ask_destination(client: SlurmClient, partition: str | None, qos: str | None) -> Destination:
    """Ask Slurm what a job meets in a partition.

    Args:
        client: Asks Slurm.
        partition: Its name; None for the cluster's default.
        qos: The job's QOS; None where the account's default counts, whose rules are then not known.

    Raises:
        InputError: There is no such partition.
        SchedulerError: Slurm is not there, or does not answer.
    """
    site, partitions = client.site(), client.partitions()
    found = [each for each in partitions if (each.is_default if partition is None else each.name == partition)]
    if not found:
        names = ", ".join(each.name for each in partitions)
        wanted = "default partition" if partition is None else f"partition {partition!r}"
        raise InputError(f"this cluster has no {wanted}", f"--partition with one of: {names}")
    rules = client.qos(qos) if qos is not None and site.preempt_by == "qos" else None
    return Destination(site=site, partition=found[0], preemption=preemption_of(site, found[0], partitions, rules))
