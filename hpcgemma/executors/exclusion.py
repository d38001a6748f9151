"""The nodes that a submission leaves out for their strikes, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcgemma import strikes
from hpcgemma.errors import SchedulerError
from hpcgemma.findings import Finding
from hpcgemma.job_plan import JobPlan
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.refusals import SubmitRefused


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What a job is not to have, and what a person should know of it."""

    nodes: tuple[str, ...] = ()
    notes: tuple[Finding, ...] = ()


def exclusion_for(plan: JobPlan, client: SlurmClient) -> Exclusion:
    """Return which nodes a job of a plan is not to have.

    A name that the cluster does not know, as of a node that is gone, is passed over: sbatch would refuse the job.

    Args:
        plan: Its profile names the cluster.
        client: Asks Slurm.
    """
    known = strikes.read_strikes(plan.profile)
    try:
        nodes = client.known_nodes(known.left_out)
    except SchedulerError:  # nothing can be submitted now, but a script can be shown
        nodes = known.left_out
    take_back = f"hpcgemma nodes --profile {plan.profile} --forget"
    notes = [
        Finding(
            f"node {node} is left out for its {len(known.of(node))} strikes, the last in run {known.of(node)[-1].run}: "
            f"{known.of(node)[-1].why}",
            f"once it is mended: {take_back} {node}",
        )
        for node in nodes
    ]
    if known.problem:
        notes.append(
            Finding(known.problem, f"edit it; hpcgemma nodes --profile {plan.profile} shows what is read of it")
        )
    return Exclusion(tuple(nodes), tuple(notes))


def explained(refused: SubmitRefused, profile: str, nodes: Sequence[str]) -> SubmitRefused:
    """Return a refusal that says which nodes were left out, since they may be what the job lacks."""
    if not nodes:
        return refused
    return SubmitRefused(
        f"{refused.problem}; left out for their strikes: {', '.join(nodes)}",
        f"{refused.hint}; or take one of them back: hpcgemma nodes --profile {profile} --forget NODE",
    )
