"""Why a job waits, and what its state means, in plain words. Pure.

Slurm has over 200 reasons (src/common/job_state_reason.c); they are matched by pattern. Only the first
obstacle that Slurm meets is shown, so a reason may change from one minute to the next. An unknown reason or
state is never an error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["transient", "wait", "action", "dead", "budget", "site", "terminal", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What one of Slurm's words means for the user."""

    kind: Kind
    """transient: over in seconds; wait: ends by itself; action: the user must act; dead: never starts unless
    changed; budget: the project's hours; site: the operators must act; terminal: the job has ended."""

    sentence: str
    """What it means, as a full sentence."""

    remedy: str
    """What the user can do; empty if nothing needs doing."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """An explanation for every reason that matches the pattern from its start."""

    pattern: str
    kind: Kind
    sentence: str
    remedy: str = ""


_SMALLER = "ask for fewer GPUs or less time, or choose another QOS"
_CHANGE = "cancel it and submit a smaller request, or choose another QOS or partition"

# The first rule that matches counts.
_REASONS: tuple[_Rule, ...] = (
    _Rule("None$", "transient", "Slurm has not looked at the job in this scheduling round yet.", "wait a minute"),
    _Rule(
        "Priority$",
        "wait",
        "Other jobs with a higher priority come first.",
        "a shorter walltime or fewer GPUs lets the job fill a gap; a debug QOS starts sooner",
    ),
    _Rule(
        "Resources$",
        "wait",
        "The job is next in line and waits until enough nodes are free.",
        "a smaller request, or one without whole nodes or a list of nodes, starts sooner",
    ),
    _Rule(
        "DependencyNeverSatisfied",
        "dead",
        "The job waits for another one that failed, so it never starts.",
        "cancel it and submit it again; chains should depend with 'afterany', not 'afterok'",
    ),
    _Rule(
        "Dependency",
        "wait",
        "The job waits until another one ends.",
        "'squeue --me --format=\"%i %E\"' shows for which; cancel the job if that is not wanted",
    ),
    _Rule(
        "BeginTime",
        "wait",
        "The job may start only later: it was requeued (about two minutes) or submitted with a begin time.",
        "wait, or run 'scontrol update JobId=ID StartTime=now+5'",
    ),
    _Rule("JobHeldUser", "action", "You hold the job back.", "run 'scontrol release ID'"),
    _Rule("JobHeldAdmin", "action", "The site's staff hold the job back.", "ask the site's support"),
    _Rule(
        "JobHoldMaxRequeue|JobLaunchFailure|launch failed requeued held|RaisedSignal",
        "action",
        "The job could not be started on its nodes several times, so Slurm holds it back.",
        "look at its log, avoid the bad node with --exclude, then run 'scontrol release ID' or submit again",
    ),
    _Rule(
        r"(QOS|Assoc)?(Max|Grp)\w*Submit\w*",
        "wait",
        "You or your project have as many jobs queued as the site allows.",
        "wait until some end, or chain fewer jobs",
    ),
    _Rule(
        r"(QOS|Assoc)(Max|Grp)\w*RunMin\w*",
        "wait",
        "The running jobs of your project have as much time still to run as the site allows.",
        "ask for shorter walltimes",
    ),
    _Rule(
        r"(QOS|Assoc)(Max|Grp)(?!\w*PerJob)\w*(Minutes|Mins)\w*",
        "budget",
        "The project's hours are used up, or less is left than this job's full walltime takes.",
        "ask for a shorter walltime, use another account, or ask the project's leader for more hours",
    ),
    _Rule(r"QOSUsageThreshold", "budget", "The project used more than this QOS tolerates.", "use another QOS"),
    _Rule(r"(QOS|Assoc)GrpWall\w*", "budget", "The project's total walltime is used up.", "use another account"),
    _Rule(
        r"(QOS|Assoc)(Max)?Wall\w*|(QOS|Assoc)Max\w*PerJob\w*|(QOS|Assoc)Max\w*PerNode\w*",
        "dead",
        "The job asks for more than its QOS or account allows for one job, so it never starts.",
        f"{_CHANGE}; 'scontrol update JobId=ID TimeLimit=...' can shorten its time",
    ),
    _Rule(
        r"(QOS|Assoc)Min\w*",
        "dead",
        "The job asks for less than its QOS is meant for, so it never starts.",
        "cancel it and choose another QOS",
    ),
    _Rule(
        r"(QOS|Assoc)Max\w*Per(User|Account|Acct)\w*|(QOS|Assoc)Max\w*Jobs?\w*|(QOS|Assoc)GrpJobs\w*|Max\w*PerAccount",
        "wait",
        "You or your project already run as much as this QOS or account allows at a time.",
        "wait until your own jobs end, or choose another QOS",
    ),
    _Rule(
        r"(QOS|Assoc)Grp\w*",
        "wait",
        "Everybody in your project or QOS together uses as much as is allowed at a time.",
        "wait, or agree with your project who runs when",
    ),
    _Rule(
        r"(QOS|Assoc)Max\w*(Limit)?$",
        "dead",
        "The job exceeds a limit of its QOS or account.",
        _CHANGE,
    ),
    _Rule(
        r"InvalidAccount|InvalidQOS|AccountNotAllowed|QOSNotAllowed|QOSResourceLimit|AssociationResourceLimit",
        "dead",
        "Account, QOS and partition do not go together, or the account has expired.",
        "'sacctmgr show assoc user=$USER' lists what you may use; cancel the job and submit it so",
    ),
    _Rule(
        r"PartitionTimeLimit|PartitionNodeLimit|PartitionConfig|PartitionNotAllowed",
        "dead",
        "The job asks for more time or nodes than its partition allows or has working now.",
        "cancel it and ask for less, or choose another partition; 'sinfo' shows the limits",
    ),
    _Rule("PartitionDown|PartitionInactive", "site", "The partition is closed.", "see the site's status page"),
    _Rule(
        r"ReqNodeNotAvail.*(Reserved|[Mm]aintenance)",
        "action",
        "The nodes are reserved, mostly because the job would run into a maintenance.",
        "shorten the walltime so that the job ends before it, or wait until it is over",
    ),
    _Rule(
        "ReqNodeNotAvail",
        "action",
        "Nodes that the job needs are down, reserved, or about to be taken into maintenance.",
        "drop the list of nodes, or shorten the walltime so that the job ends before the maintenance",
    ),
    _Rule(
        "ReservationDeleted|ReservationInvalid",
        "dead",
        "The reservation that the job asks for does not exist.",
        "cancel the job and submit it without --reservation",
    ),
    _Rule("Reservation", "wait", "The job waits until its reservation begins.", "wait, or drop --reservation"),
    _Rule(
        "BadConstraints|Constraints|MaxMemPerLimit|MaxMemoryPerLimit|NodeShapeInvalid",
        "dead",
        "No node has the features, memory or shape that the job asks for, so it never starts.",
        "cancel it and correct the constraint or the memory",
    ),
    _Rule("JobArray(Task)?Limit", "wait", "The array runs as many tasks at a time as it was told to."),
    _Rule("Licenses", "wait", "The job waits for a software licence."),
    _Rule("Prolog|Cleaning|SchedDefer", "transient", "Slurm prepares nodes or tidies up after another job."),
    _Rule(
        "NodeDown|NodesDown|NodeFail",
        "site",
        "A node that the job needs is down.",
        "wait, or drop the list of nodes",
    ),
    _Rule(
        "DeadLine|Deadline",
        "dead",
        "The job cannot end before its deadline.",
        "cancel it and drop --deadline",
    ),
    _Rule("FedJobLock", "transient", "The clusters of the federation agree on who runs the job."),
    _Rule(
        "BurstBuffer",
        "site",
        "The job waits for the fast storage it asked for.",
        "wait; if it lasts, ask support",
    ),
    _Rule("MaxPoweredUpNodes", "wait", "The site runs as many nodes as it wants to pay for at a time."),
    _Rule(
        "NvidiaImexChannels|MpiPortsBusy|PowerNotAvail|PowerReserved",
        "wait",
        "A shared resource of the site is taken.",
    ),
    _Rule(
        "OutOfMemory",
        "terminal",
        "The job used more memory of the host than it had asked for.",
        "ask for more memory",
    ),
    _Rule("NonZeroExitCode", "terminal", "The job's script failed.", "look at its log"),
    _Rule("TimeLimit", "terminal", "The job reached its walltime."),
    _Rule("SystemFailure", "terminal", "Slurm or a node failed under the job.", "submit it again"),
    _Rule("InactiveLimit", "terminal", "The job did nothing for longer than the site allows."),
)

Phase = Literal["pending", "running", "final"]

# A state, its phase, its kind, what it means, what to do. COMPLETING is no final one: its nodes are not free
# yet.
_STATES: tuple[tuple[str, Phase, Kind, str, str], ...] = (
    ("PENDING", "pending", "wait", "The job waits in the queue.", ""),
    ("REQUEUED", "pending", "transient", "The job is being put back into the queue.", ""),
    ("REQUEUE_HOLD", "pending", "action", "The job was put back and is held.", "run 'scontrol release ID'"),
    ("REQUEUE_FED", "pending", "transient", "The job is being put back into the federation's queue.", ""),
    (
        "SPECIAL_EXIT",
        "pending",
        "action",
        "The job asked to be held after it ended.",
        "run 'scontrol release ID'",
    ),
    ("RESV_DEL_HOLD", "pending", "action", "Its reservation was deleted.", "submit it without --reservation"),
    ("CONFIGURING", "running", "transient", "The job has its nodes, and they are being made ready.", ""),
    ("POWER_UP_NODE", "running", "transient", "The job's nodes are being switched on.", ""),
    ("RUNNING", "running", "wait", "The job runs.", ""),
    ("COMPLETING", "running", "transient", "The job has ended and Slurm tidies up.", ""),
    ("SUSPENDED", "running", "wait", "The job is suspended and goes on later.", ""),
    ("STOPPED", "running", "wait", "The job's processes are stopped and go on later.", ""),
    ("SIGNALING", "running", "transient", "The job is being sent a signal.", ""),
    ("STAGE_OUT", "running", "transient", "The job has ended and its files are being copied out.", ""),
    ("RESIZING", "running", "transient", "The job is changing its size.", ""),
    ("EXPEDITING", "pending", "transient", "The job was put back and starts as soon as possible.", ""),
    ("UPDATE_DB", "running", "transient", "The accounting is being told about the job.", ""),
    ("COMPLETED", "final", "terminal", "The job's script ended without an error.", ""),
    ("CANCELLED", "final", "terminal", "The job was cancelled by you or by the site's staff.", ""),
    ("FAILED", "final", "terminal", "The job's script ended with an error.", "look at its log"),
    ("TIMEOUT", "final", "terminal", "The job reached its walltime.", "resume it from its last checkpoint"),
    ("NODE_FAIL", "final", "terminal", "A node of the job failed.", "resume it from its last checkpoint"),
    (
        "PREEMPTED",
        "final",
        "terminal",
        "A more urgent job took the nodes.",
        "resume it from its last checkpoint",
    ),
    ("BOOT_FAIL", "final", "terminal", "A node of the job did not boot.", "submit it again"),
    ("LAUNCH_FAILED", "final", "terminal", "The job could not be started on its nodes.", "submit it again"),
    ("RECONFIG_FAIL", "final", "terminal", "A node of the job could not be configured.", "submit it again"),
    ("DEADLINE", "final", "terminal", "The job could not end before its deadline.", "drop --deadline"),
    (
        "OUT_OF_MEMORY",
        "final",
        "terminal",
        "The job used more memory of the host (not of the GPU) than it had asked for.",
        "ask for more memory a node",
    ),
    ("REVOKED", "final", "terminal", "Another cluster of the federation runs the job.", ""),
)


def explain_reason(reason: str) -> Explanation:
    """Return what a job's reason means; for one we do not know, an honest sentence of kind ``unknown``."""
    name = reason.strip().strip("()")
    for rule in _REASONS:
        if re.match(rule.pattern, name or "None"):
            return Explanation(kind=rule.kind, sentence=rule.sentence, remedy=rule.remedy)
    return Explanation(
        kind="unknown",
        sentence=f"Slurm gives the reason '{name}', which hpcgemma does not know.",
        remedy="see the section on job reason codes of Slurm's manual, or ask the site's support",
    )


def explain_state(state: str) -> Explanation:
    """Return what a job's long state means; for an unknown one, an honest sentence of kind ``unknown``."""
    for name, _, kind, sentence, remedy in _STATES:
        if name == state:
            return Explanation(kind=kind, sentence=sentence, remedy=remedy)
    return Explanation(
        kind="unknown",
        sentence=f"Slurm says that the job is '{state}', which hpcgemma does not know.",
        remedy="see the section on job state codes of squeue's manual",
    )


def is_pending(state: str) -> bool:
    """Return whether a job in this state waits to be started, for the first time or again."""
    return _phase(state) == "pending"


def is_running(state: str) -> bool:
    """Return whether a job in this state holds nodes."""
    return _phase(state) == "running"


def is_final(state: str) -> bool:
    """Return whether a job in this state has ended; a preempted one may still be requeued under its id."""
    return _phase(state) == "final"


def _phase(state: str) -> Phase | None:
    return next((phase for name, phase, *_ in _STATES if name == state), None)
