"""How a run that is submitted goes on: what the site decides, and jobs queued ahead."""

from __future__ import annotations

import dataclasses

from hpcgemma.destination import ask_destination
from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.executors import submission
from hpcgemma.fate import Choice, choose_way
from hpcgemma.findings import Finding
from hpcgemma.plan import Plan
from hpcgemma.profiles import Profile
from hpcgemma.runs.lead import SaveNeed, grace_caution
from hpcgemma.runs.measurement import newest_measurement
from hpcgemma.runs.state import waiting_links
from hpcgemma.runs.store import RunEntry
from hpcgemma.slurm.client import SlurmClient


def require_queue(links: int | None, profile: Profile) -> None:
    """Refuse a chain of jobs where there is no queue.

    Raises:
        InputError: There is none.
    """
    if links and profile.scheduler != "slurm":
        raise InputError(
            f"profile {profile.name!r} has no queue in which links could wait",
            "leave --links out: a run here has no time limit",
        )


def going_on(
    plan: Plan, profile: Profile, client: SlurmClient, need: SaveNeed | None = None
) -> tuple[Plan, Choice, list[Finding]]:
    """Ask Slurm how a run can go on here, and return its plan with that, why, and what is worth knowing.

    Where Slurm says nothing of it the plan stays as it is.

    Args:
        plan: The run's.
        profile: The run's.
        client: Asks Slurm.
        need: What the run's own saves took; None takes the newest run of this profile and recipe.
    """
    measured = None if need else newest_measurement(plan.profile, plan.recipe)
    whose = f"run {measured.run}" if measured else "this run"
    need = need or (measured.need if measured else None)
    try:
        destination = ask_destination(client, plan.partition, plan.qos, plan.account)
    except HpcGemmaError:
        return plan, choose_way(profile.continuation.mode, None, None, None), []
    choice = choose_way(profile.continuation.mode, destination.site, destination.partition, destination.preemption)
    preemption = destination.preemption
    caution = grace_caution(need, preemption.notice_s, whose=whose, where=preemption.where)
    return dataclasses.replace(plan, continue_by=choice.way), choice, [caution] if caution else []


def queue(entry: RunEntry, plan: Plan, client: SlurmClient, job_id: str, links: int | None) -> list[Finding]:
    """Queue the links of a chain behind its first job, and return why there are fewer than wanted."""
    finding = submission.queue_links(entry, plan, client, job_id, links) if links else None
    return [finding] if finding else []


def describe(entry: RunEntry) -> str:
    """Return a line on the links that wait."""
    waiting = waiting_links(entry.folder.events())
    return f"waiting behind it: {', '.join(waiting)}" if waiting else "no link waits behind it"
