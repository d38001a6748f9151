"""Slurm's complaints in plain words: why it refused a job, whether it answered at all. Pure."""

from __future__ import annotations

import re
from typing import Literal

from hpcgemma.errors import SchedulerError


class SubmitTimeout(SchedulerError):  # noqa: N818 - its base class says that it is an error
    """The answer to a submission was lost: the job may or may not exist. Look for it before trying again."""


class SubmitRefused(SchedulerError):  # noqa: N818 - its base class says that it is an error
    """Slurm refused the job; nothing will run."""


class OrderRefused(SchedulerError):  # noqa: N818 - its base class says that it is an error
    """Slurm refused what a job was to be told; the job is as it was."""


Failure = Literal["unreachable", "answer lost", "unknown job", "accounting disabled", "other"]

# Slurm's texts: src/common/slurm_errno.c. The connection was never made, so nothing was asked.
_UNREACHABLE = re.compile(
    r"connect failure|Communication connection failure|Connection refused|No route to host|"
    r"Unable to (contact|resolve|establish)|controller in standby mode|"
    r"Could not establish a configuration source",
    re.IGNORECASE,
)
# The question went out, or may have; the answer did not come.
_ANSWER_LOST = re.compile(
    r"Socket timed out|Zero Bytes were transmitted|(send|receive|shutdown) failure|"
    r"Connection (reset|timed out)|Broken pipe|Transport endpoint|Unexpected message rece?ie?ved|"
    r"temporarily unable to accept job",
    re.IGNORECASE,
)
_UNKNOWN_JOB = re.compile(r"Invalid job id specified", re.IGNORECASE)

_SHRINK = "ask for less, or choose another partition or QOS; see 'sinfo' and 'sacctmgr show qos'"

# What Slurm says, what is wrong, what helps. The first that matches counts, so the narrow ones come first.
_SUBMIT_REFUSALS: tuple[tuple[str, str, str], ...] = (
    (
        r"Invalid account|account/partition combination",
        "Slurm does not let you use this account in this partition",
        "--account with one that 'sacctmgr show assoc user=$USER format=account,qos' lists",
    ),
    (
        r"Invalid qos",
        "Slurm does not let you use this QOS",
        "set the profile's QOS to one that 'sacctmgr show assoc user=$USER format=account,qos' lists",
    ),
    (
        r"invalid partition|partition name",
        "this cluster has no such partition",
        "set the profile's partition to one that 'sinfo' lists",
    ),
    (
        r"MaxSubmitJob|MaxJobsLimit|job submit limit reached",
        "you have as many jobs in the queue as Slurm allows you",
        "wait until one of them ends, or cancel one; 'squeue --me' lists them",
    ),
    (
        r"MaxWall",
        "the job asks for more time than its QOS allows",
        "shorten the walltime, or choose another QOS; see 'sacctmgr show qos format=name,maxwall'",
    ),
    (
        r"QOSMin|below .*minimum",
        "the job asks for less than its QOS is meant for",
        "choose another QOS; 'sacctmgr show qos format=name,mintres' lists the minimum",
    ),
    (r"(QOS|Assoc)(Max|Grp)\w+", "the job exceeds a limit of its QOS or account", _SHRINK),
    (r"accounting/QOS policy", "the job exceeds a limit of its QOS or account", _SHRINK),
    (
        r"time limit",
        "the job asks for more time than its partition allows",
        "shorten the walltime; 'sinfo --format=\"%P %l\"' lists each partition's limit",
    ),
    (
        r"Memory specification|memory required|memory limit",
        "no node of the partition has the memory that the job asks for",
        "ask for less memory a node; 'sinfo --format=\"%P %m\"' lists it in megabytes",
    ),
    (
        r"CPU count|More processors requested|cpus? per task",
        "the job asks for more CPU cores than Slurm can or may give it",
        "ask for fewer cores a GPU or fewer nodes; 'sinfo --format=\"%P %c\"' lists the cores of a node",
    ),
    (
        r"Node count",
        "the job asks for more nodes than its partition has or allows",
        "ask for fewer nodes; 'sinfo --format=\"%P %D\"' lists them",
    ),
    (
        r"Invalid generic resource|gres",
        "this cluster does not know the kind of GPU that the job asks for",
        "correct the profile's GPU request; 'sinfo --format=\"%P %G\"' lists what nodes offer",
    ),
    (
        r"feature specification",
        "no node of the partition has the feature that the job asks for",
        "correct the profile's constraint; 'sinfo --format=\"%P %f\"' lists the features",
    ),
    (
        r"node configuration is not available",
        "no node of the partition has the GPUs, cores and memory that the job asks for together",
        "compare the profile with 'sinfo --format=\"%P %G %c %m\"'",
    ),
    (
        r"node name",
        "the job names a node that does not exist",
        "correct the list of nodes; 'sinfo --Node' lists them",
    ),
    (
        r"dependency",
        "the job is to wait for another in a way Slurm does not understand",
        "correct the dependency",
    ),
    (
        r"Unable to open file|No such file",
        "sbatch cannot read the job script",
        "check that the run folder still exists and can be read",
    ),
    (
        r"Access/permission denied|User's group not permitted|not permitted to use this partition",
        "you are not allowed to submit this job",
        "ask the site's support for access to the partition",
    ),
)


def failure_of(complaint: str) -> Failure:
    """Return what kind of failure Slurm's complaint tells of; the job's own faults are ``other``."""
    if "accounting storage is disabled" in complaint:
        return "accounting disabled"
    if _ANSWER_LOST.search(complaint):
        return "answer lost"
    if _UNREACHABLE.search(complaint):
        return "unreachable"
    return "unknown job" if _UNKNOWN_JOB.search(complaint) else "other"


def lacks_nodes(complaint: str) -> bool:
    """Return whether Slurm complains of too few nodes that a job may have, or of a node that there is not."""
    return re.search(r"node configuration is not available|Node count|node name", complaint, re.IGNORECASE) is not None


def own_words(complaint: str) -> str:
    """Return Slurm's complaint as one line, without the command's name at the start of each."""
    lines = (re.sub(r"^\s*\w+: (error: )?", "", line).strip() for line in complaint.splitlines())
    return "; ".join(line for line in lines if line) or "no text"


def refusal(complaint: str) -> SubmitRefused:
    """Return the error for a job that Slurm refused: what is wrong, Slurm's own words, and what helps."""
    slurm_says = own_words(complaint)
    for pattern, problem, hint in _SUBMIT_REFUSALS:
        if re.search(pattern, complaint, re.IGNORECASE):
            return SubmitRefused(f"{problem} (Slurm: {slurm_says})", hint)
    return SubmitRefused(
        f"Slurm refused the job: {slurm_says}", "correct the request; 'sbatch --test-only' checks a script"
    )


def controller_silent(command: str, complaint: str) -> SchedulerError:
    """Return the error for a controller that does not answer."""
    return SchedulerError(
        f"Slurm's controller does not answer '{command}' ({own_words(complaint)}); nothing was lost",
        "try again in a minute; if it lasts, look at the site's status page",
    )


def command_missing(command: str) -> SchedulerError:
    """Return the error for a machine without Slurm."""
    return SchedulerError(
        f"Slurm's command '{command}' was not found on this machine",
        "run on a login node of the cluster (maybe after 'module load slurm'), or use --profile local",
    )
