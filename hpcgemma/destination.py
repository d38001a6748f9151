"""Where a job goes: what Slurm says of its partition, and what becomes of jobs there."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgemma.errors import InputError
from hpcgemma.preemption import Preemption, preemption_of
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.site import Partition, Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A cluster, one of its partitions, and how jobs are preempted there."""

    site: Site
    partition: Partition
    preemption: Preemption
    qos: str | None = None
    """The job's, where it decides who preempts it; None where it does not, or is not known."""


def ask_destination(
    client: SlurmClient, partition: str | None, qos: str | None, account: str | None = None
) -> Destination:
    """Ask Slurm what a job meets in a partition.

    Args:
        client: Asks Slurm.
        partition: Its name; None for the cluster's default.
        qos: The job's QOS; None for the default of its account.
        account: The job's account; None for the caller's default.

    Raises:
        InputError: There is no such partition, or no such QOS where it matters.
        SchedulerError: Slurm is not there, or does not answer.
    """
    site, partitions = client.site(), client.partitions()
    found = [each for each in partitions if (each.is_default if partition is None else each.name == partition)]
    if not found:
        names = ", ".join(each.name for each in partitions)
        wanted = "default partition" if partition is None else f"partition {partition!r}"
        raise InputError(f"this cluster has no {wanted}", f"--partition with one of: {names}")
    if site.preempt_by != "qos":
        return Destination(site=site, partition=found[0], preemption=preemption_of(site, found[0], partitions))
    known = client.all_qos()
    if known is not None and qos is not None and qos not in [each.name for each in known]:
        names = ", ".join(each.name for each in known)
        raise InputError(f"this cluster has no QOS {qos!r}", f"--qos with one of: {names}")
    if known is not None and qos is None:
        qos = client.default_qos(site.cluster, account, found[0].name)
    preemption = preemption_of(site, found[0], partitions, qos, known)
    return Destination(site=site, partition=found[0], preemption=preemption, qos=qos)
