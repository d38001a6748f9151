"""What `hpcgemma doctor` says, as sentences: the machine, the cluster, what becomes of a job, what is at risk. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcgemma.destination import Destination
from hpcgemma.fate import Choice, choose_way, fates
from hpcgemma.findings import Finding
from hpcgemma.machine import Machine
from hpcgemma.profiles import Profile
from hpcgemma.runs.lead import grace_caution, warning_lead_s
from hpcgemma.runs.measurement import Measurement
from hpcgemma.walltime import format_walltime

_LOW_DISK_GIB = 20
"""Below this a few checkpoints of a 9B model with its optimizer state may not fit."""
_A_DAY_MIN = 1440


@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """What is not as it should be, and what to do."""

    problem: str
    hint: str
    loses_work: bool
    """Whether work would be lost, or a run stand still until a person looks."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, and lines of a label and a text."""

    title: str
    lines: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All that is said."""

    sections: tuple[Section, ...]
    risks: tuple[Risk, ...]
    choice: Choice | None
    """How a run goes on; None without a scheduler."""

    @property
    def loses_work(self) -> bool:
        """Whether any risk would lose work."""
        return any(risk.loses_work for risk in self.risks)


def diagnose(
    profile: Profile,
    machine: Machine,
    destination: Destination | None,
    measurement: Measurement | None,
    *,
    silence: Finding | None = None,
) -> Diagnosis:
    """Return what there is to say.

    Args:
        profile: The cluster profile.
        machine: What this machine has.
        destination: What Slurm says of the partition; None without a scheduler, or where it does not answer.
        measurement: What saves took in the newest run of this profile; None before any.
        silence: Why Slurm did not answer; None where it did, or was not asked.
    """
    sections = [_machine_section(machine, profile)]
    risks = _machine_risks(machine)
    if profile.scheduler == "none":
        sections.append(_local_section(profile))
        return Diagnosis(sections=tuple(sections), risks=tuple(risks), choice=None)
    known = (
        (None, None, None) if destination is None else (destination.site, destination.partition, destination.preemption)
    )
    choice = choose_way(profile.continuation.mode, *known)
    if destination is None:
        sections.append(Section("the cluster", (("Slurm", "It did not answer: what it does to a job is not known."),)))
        if silence is not None:
            risks.append(Risk(problem=silence.problem, hint=silence.hint, loses_work=False))
    else:
        sections.append(_cluster_section(destination))
        sections.append(_fate_section(profile, destination, choice))
        risks += _fate_risks(destination, choice, measurement)
    limit_min = destination.partition.max_time_min if destination else None
    going_on = (("way", f"{choice.way}: {choice.reason}"), ("warning", _warning(profile, measurement, limit_min)))
    sections.append(Section("how a run goes on", going_on))
    return Diagnosis(sections=tuple(sections), risks=tuple(risks), choice=choice)


def _warning(profile: Profile, measurement: Measurement | None, limit_min: int | None) -> str:
    """Return how early a continued job is warned of its time limit, and why."""
    assumed_s = profile.continuation.lead_s
    if measurement is None:
        return f"{assumed_s} s before the time limit, as the profile says; later as early as a run's own saves need"
    need = measurement.need
    lead_s = warning_lead_s(need, assumed_s=assumed_s, walltime_min=limit_min or _A_DAY_MIN)
    return f"{lead_s} s before the time limit, were it run {measurement.run}, which needs {need.seconds} s to save"


def _machine_section(machine: Machine, profile: Profile) -> Section:
    runs = machine.runs
    works = {True: "work", False: "do not work"}
    packages = "all of the trainer's"
    if machine.missing_packages:
        packages = f"of the trainer's are missing: {', '.join(machine.missing_packages)}"
    folder = (
        f"{runs.folder} can be written, {runs.free_gib:,.0f} GiB are free, hard links {works[runs.has_links]}, "
        f"file locks {works[runs.has_locks]}"
    )
    if runs.problem:
        folder = f"{runs.folder} cannot be written: {runs.problem}"
    slurm = "all of its commands are here"
    if machine.missing_commands:
        slurm = f"not found: {', '.join(machine.missing_commands)}"
    lines = [
        ("Python", machine.python),
        ("packages", packages),
        ("models", f"{machine.cached_models} in {machine.hub_cache}"),
        ("runs", folder),
    ]
    if profile.scheduler == "slurm":
        lines.insert(2, ("Slurm", slurm))
    return Section("this machine", tuple(lines))


def _machine_risks(machine: Machine) -> list[Risk]:
    runs, found = machine.runs, []
    if machine.missing_packages:
        found.append(
            Risk(
                problem="the trainer's packages are not installed beside hpcgemma: "
                f"{', '.join(machine.missing_packages)}",
                hint="pip install 'hpcgemma[train]'",
                loses_work=False,
            )
        )
    if runs.problem:
        found.append(
            Risk(
                problem=f"no run can be written into {runs.folder}: {runs.problem}",
                hint="choose another folder with --runs-dir or HPCGEMMA_RUNS_DIR",
                loses_work=True,
            )
        )
        return found
    if not runs.has_links:
        found.append(
            Risk(
                problem=f"{runs.folder} has no hard links, on which rests that one job at a time works on a run",
                hint="choose a folder on another file system with --runs-dir or HPCGEMMA_RUNS_DIR",
                loses_work=True,
            )
        )
    if runs.free_gib < _LOW_DISK_GIB:
        found.append(
            Risk(
                problem=f"{runs.folder} has {runs.free_gib:.1f} GiB left; a save that does not fit is skipped",
                hint="free some space, or choose another folder with --runs-dir or HPCGEMMA_RUNS_DIR",
                loses_work=False,
            )
        )
    return found


def _cluster_section(destination: Destination) -> Section:
    site, partition = destination.site, destination.partition
    limit = "no time limit" if partition.max_time_min is None else f"at most {format_walltime(partition.max_time_min)}"
    requeue = {True: "yes (JobRequeue=1)", False: "only those that ask for it (JobRequeue=0)", None: "not known"}
    accounting = {True: "ended jobs stay known", False: "none: ended jobs are soon forgotten", None: "not known"}
    lines = [
        ("Slurm", site.version or "version not known"),
        ("partition", f"{partition.name}, {limit}" + ("" if partition.is_up else ", not up at the moment")),
        ("requeues jobs", requeue[site.job_requeue]),
        ("accounting", accounting[site.has_accounting]),
        ("processes", f"tracked by {site.proctrack}" if site.proctrack else "how they are tracked is not known"),
    ]
    if site.preempt_by == "qos":
        lines.insert(2, ("QOS", destination.qos or "which one a job gets is not known"))
    return Section("the cluster", tuple(lines))


def _fate_section(profile: Profile, destination: Destination, choice: Choice) -> Section:
    continuation = profile.continuation
    told = fates(
        destination.site,
        destination.partition,
        destination.preemption,
        choice.way,
        signal=continuation.signal,
        lead_s=continuation.lead_s,
    )
    return Section(
        "what happens to a job",
        tuple(line for fate in told for line in ((fate.event, fate.happens), ("", fate.response))),
    )


def _fate_risks(destination: Destination, choice: Choice, measurement: Measurement | None) -> list[Risk]:
    site, preemption = destination.site, destination.preemption
    ahead = "submit a chain ahead: continuation.mode: auto or chain in the profile, or --links 4"
    found = []
    if preemption.mode == "cancel" and not preemption.grace_s and choice.way != "chain":
        grace = "without grace" if preemption.grace_s == 0 else "with a grace that is not known"
        found.append(
            Risk(
                problem=f"a preempted job of {preemption.where} is cancelled {grace}, and a {choice.way} may come too "
                "late",
                hint=ahead,
                loses_work=True,
            )
        )
    if preemption.mode == "unknown":
        source = "sacctmgr show qos" if site.preempt_by == "qos" else "scontrol show partition"
        found.append(
            Risk(
                problem=f"what becomes of a preempted job of {preemption.where} is not known",
                hint=f"see what '{source}' says of PreemptMode and GraceTime"
                + ("" if choice.way == "chain" else f"; until then {ahead}"),
                loses_work=choice.way != "chain",
            )
        )
    if site.requeues_after_node_failure is False and choice.way != "chain":
        found.append(
            Risk(
                problem="Slurm does not requeue a job here whose node is lost: the run stands still until a person "
                "looks",
                hint=ahead,
                loses_work=True,
            )
        )
    if choice.way == "chain" and not destination.partition.takes_jobs_from_nodes:
        found.append(
            Risk(
                problem="no job may be submitted from a compute node here (AllocNodes), so none can be queued ahead "
                "from inside",
                hint="queue them from here: hpcgemma submit … --links 4",
                loses_work=True,
            )
        )
    if measurement is not None:
        caution = grace_caution(
            measurement.need, preemption.notice_s, whose=f"run {measurement.run}", where=preemption.where
        )
        if caution is not None:
            found.append(Risk(problem=caution.problem, hint=caution.hint, loses_work=True))
    return found


def _local_section(profile: Profile) -> Section:
    continuation, resume = profile.continuation, "hpcgemma resume"
    lines: Sequence[tuple[str, str]] = (
        ("a rank is killed", f"It is started again here, up to {continuation.max_relaunches} times without progress."),
        ("this machine goes down", f"SIGTERM comes: the run saves and ends. Afterwards: {resume}."),
        (f"SIG{continuation.signal}", "The run saves, and goes on by itself."),
        ("kill -9, power loss", f"What came after the last checkpoint is lost. Afterwards: {resume}."),
        ("Ctrl-C, logging out", "Nothing: the run goes on without a terminal."),
        ("the disk is full", "That save is skipped, the checkpoints before it stay; the last save must succeed."),
        ("time limit", "There is none."),
    )
    return Section("what a run here survives", tuple(lines))
