"""What becomes of a job at a site, and how a run goes on there. Pure: it speaks of what `slurm/site.py` has read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpcgemma.preemption import Preemption
from hpcgemma.slurm.site import Partition, Site
from hpcgemma.walltime import format_walltime

Way = Literal["successor", "requeue", "chain"]
"""How a run goes on: a job submitted at the warning, the same job requeued, or jobs that wait ahead."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A way of going on, and why."""

    way: Way
    reason: str


@dataclass(frozen=True, slots=True)
class Fate:
    """What happens to a job, and what hpcgemma does then."""

    event: str
    happens: str
    response: str


def choose_way(
    mode: Literal["auto", "successor", "requeue", "chain"],
    site: Site | None,
    partition: Partition | None,
    preemption: Preemption | None,
) -> Choice:
    """Return how a run goes on here, and why.

    Args:
        mode: The profile's `continuation.mode`; all but auto decides.
        site: None where Slurm did not say.
        partition: None where Slurm did not say.
        preemption: None where Slurm did not say.
    """
    if mode != "auto":
        return Choice(mode, f"the profile says so (continuation.mode: {mode})")
    if site is None or partition is None or preemption is None:
        return Choice("successor", "Slurm did not say what it does here, and a successor needs no more than sbatch")
    if preemption.mode == "unknown":
        return Choice("chain", "what becomes of a preempted job here is not known, and a job that waits ahead is safe")
    if preemption.mode == "cancel" and preemption.grace_s is None:
        return Choice("chain", "preempted jobs are cancelled here, and with how much grace is not known")
    if preemption.mode == "cancel" and preemption.grace_s == 0:
        return Choice("chain", "preempted jobs are cancelled here with no grace to submit the next one in")
    if site.requeues_after_node_failure is False:
        return Choice("chain", "Slurm does not requeue a job here whose node is lost (JobRequeue=0)")
    if not partition.takes_jobs_from_nodes:
        return Choice("requeue", "no job may be submitted from a compute node here (AllocNodes)")
    return Choice(
        "successor",
        f"it starts a second after its nodes are free; a requeued job waits {site.requeue_wait_s} s",
    )


def fates(
    site: Site, partition: Partition, preemption: Preemption, way: Way, *, signal: str, lead_s: int
) -> list[Fate]:
    """Return what happens to a job of a run at each event that Slurm knows, and what hpcgemma does.

    Args:
        site: The cluster.
        partition: Where the job is.
        preemption: How it is preempted there.
        way: How the run goes on.
        signal: Name of the profile's warning signal, without SIG.
        lead_s: Seconds before the time limit at which Slurm is asked to warn.
    """
    goes_on = {
        "successor": "a successor goes on",
        "requeue": "the job is requeued and goes on",
        "chain": "the next link of its chain goes on, if there is one",
    }[way]
    limit = "has no time limit" if partition.max_time_min is None else f"ends after {_limit(partition)} at the latest"
    return [
        Fate("preemption", _preempted(site, preemption, signal), _after_preemption(preemption, goes_on)),
        Fate(
            "time limit",
            f"A job here {limit}. The batch host gets SIG{signal} {lead_s} s before its own limit, up to 60 s early; "
            f"at the limit SIGTERM goes to all, and {_kill_wait(site)} later SIGKILL.",
            f"The ranks save at the warning, and {goes_on}{_and_its_warning(way)}.",
        ),
        _lost_node(site, way),
        Fate(
            "scancel",
            f"SIGTERM goes to all processes, and {_kill_wait(site)} later SIGKILL.",
            "What is saved by then is kept, and the run ends: it comes back by hpcgemma resume alone.",
        ),
    ]


def _and_its_warning(way: Way) -> str:
    return "" if way == "requeue" else ", warned as early as the saves so far need"


def _preempted(site: Site, preemption: Preemption, signal: str) -> str:
    if preemption.reason:
        return preemption.reason
    if preemption.mode == "suspend":  # PreemptExemptTime does not count here: slurm.conf(5)
        turns = ", or in turns with them" if site.preempt_by == "qos" else ""
        return f"{preemption.by} may suspend it, without a warning; it goes on in place when they have ended{turns}."
    exempt = f" once it has run for {preemption.exempt_s} s" if preemption.exempt_s else ""
    if preemption.grace_s is None:
        warning = f"How long it is warned is not known (GraceTime of {preemption.where})."
    elif preemption.grace_s == 0:
        warning = f"There is no grace: SIGTERM goes to all processes at once, and {_kill_wait(site)} later SIGKILL."
    elif site.sends_user_signal:
        warning = f"The batch host gets SIG{signal}, and after {preemption.grace_s} s all is ended."
    else:
        warning = f"Each rank gets SIGTERM, the batch host nothing, and after {preemption.grace_s} s all is ended."
    outcome = {
        "requeue": "Slurm then requeues the job.",
        "cancel": "Slurm then cancels the job, and does not requeue it.",
    }
    then = outcome.get(preemption.mode, "What Slurm then does with the job is not known.")
    return f"{preemption.by} may take its nodes{exempt}. {warning} {then}"


def _after_preemption(preemption: Preemption, goes_on: str) -> str:
    if preemption.mode == "off":
        return "Nothing."
    if preemption.mode == "suspend":
        return "Nothing; ranks that gave each other up meanwhile are started again in the same allocation."
    if preemption.mode == "requeue":
        return f"The ranks save, and {goes_on}; one that is killed before is requeued, to its last checkpoint."
    return f"The ranks save, and {goes_on}."


def _lost_node(site: Site, way: Way) -> Fate:
    silence = "some minutes" if site.slurmd_timeout_s is None else f"{site.slurmd_timeout_s} s"
    match site.requeues_after_node_failure:
        case True:
            then = "Slurm ends the job and requeues it."
            response = "The run goes on from its last checkpoint by itself."
        case False:
            then = "Slurm ends the job and does not requeue it (JobRequeue=0)."
            response = (
                "The next link of the chain goes on from the last checkpoint."
                if way == "chain"
                else "The run stands still until hpcgemma resume, which goes on from its last checkpoint."
            )
        case _:
            then = "Slurm ends the job; whether it is requeued is not known."
            response = "If Slurm requeues it the run goes on from its last checkpoint, else hpcgemma resume does."
    return Fate("lost node", f"Nobody is warned. After {silence} of silence {then}", response)


def _kill_wait(site: Site) -> str:
    return "some seconds" if site.kill_wait_s is None else f"{site.kill_wait_s} s"


def _limit(partition: Partition) -> str:
    return format_walltime(partition.max_time_min or 0)
