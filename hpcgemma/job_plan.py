"""What one job asks of a scheduler: all that a job script says, computed from a profile. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from hpcgemma.errors import ConfigError, InputError, Problem
from hpcgemma.profiles import Profile
from hpcgemma.walltime import format_walltime, parse_walltime

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")

CPU_JOB_WALLTIME = "04:00:00"
"""Time limit of a job without a GPU where neither the user nor the profile says one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """What one job asks of one machine, with nothing left to compute."""

    run_name: str
    """Name of the run, or of the job where it is no run's."""
    run_id: str
    """Its identity: in the job's comment and environment, since Slurm reuses job ids."""
    profile: str
    recipe: str
    account: str | None
    partition: str | None
    qos: str | None
    constraint: str | None
    exclusive: bool
    nodes: int
    ranks_per_node: int
    """Processes per node, one per GPU."""
    gpus_per_node: int
    """GPUs asked of Slurm per node; 0 where the machine has none to ask for."""
    gpu_style: Literal["gres", "gpus_per_node", "none"]
    gpu_type: str | None
    cpus_per_rank: int | None
    memory_mb_per_node: int | None
    walltime_min: int
    offline: bool
    socket_interface: str | None
    modules_purge: bool
    modules_load: tuple[str, ...]
    unset: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    poll_interval_s: float

    @property
    def comment(self) -> str:
        """What marks a Slurm job as this one, or as one of this run's."""
        return f"hpcgemma:{self.run_id}"


def plan_cpu_job(
    profile: Profile, *, name: str, job_identity: str, recipe: str, account: str | None, walltime: str | None
) -> JobPlan:
    """Return the plan of a job without a GPU: one process in the profile's CPU queue.

    Args:
        profile: What the cluster offers.
        name: Name of the job.
        job_identity: Identity of the job, letters and digits.
        recipe: Name of the recipe that it is for.
        account: Account that pays; None where the site needs none.
        walltime: Time limit in sbatch's forms; None takes the longest that the queue is known to give.

    Raises:
        InputError: The profile has no such queue.
        ConfigError: The queue does not give what is asked for, or the account is missing.
    """
    queue = profile.cpu_queue
    if profile.scheduler != "slurm":
        raise InputError(
            f"profile {profile.name!r} has no queue to submit to", "leave --submit out, and the work is done here"
        )
    if queue is None:
        raise InputError(
            f"profile {profile.name!r} names no queue for jobs without a GPU",
            f"a profile of your own: `extends: {profile.name}` and `cpu_queue: {{partition: NAME, cpus: 4}}`; "
            "or leave --submit out, and the work is done here",
        )
    problems = name_problems(name, account, profile)
    try:
        walltime_min = parse_walltime(walltime or queue.max_walltime or CPU_JOB_WALLTIME)
    except ValueError as error:
        walltime_min = 0
        problems.append(Problem(place="--time", field="", message=str(error)))
    longest_min = parse_walltime(queue.max_walltime) if queue.max_walltime else None
    if longest_min is not None and walltime_min > longest_min:
        problems.append(
            Problem(
                place="--time",
                field="",
                message=f"{format_walltime(walltime_min)} is asked for; the CPU queue of {profile.name!r} gives at "
                f"most {format_walltime(longest_min)}",
                hint=f"--time {format_walltime(longest_min)}",
            )
        )
    if problems:
        raise ConfigError(
            f"the job does not fit profile {profile.name!r}", problems, "change what is named; nothing was submitted"
        )
    return JobPlan(
        run_name=name,
        run_id=job_identity,
        profile=profile.name,
        recipe=recipe,
        account=account,
        partition=queue.partition,
        qos=queue.qos,
        constraint=None,
        exclusive=False,
        nodes=1,
        ranks_per_node=1,
        gpus_per_node=0,
        gpu_style="none",
        gpu_type=None,
        cpus_per_rank=queue.cpus,
        memory_mb_per_node=queue.memory_mb,
        walltime_min=walltime_min,
        offline=profile.network.compute_internet == "none",
        socket_interface=None,
        modules_purge=profile.modules.purge,
        modules_load=tuple(profile.modules.load),
        unset=tuple(profile.modules.unset),
        env=tuple(profile.env.items()),
        poll_interval_s=profile.poll_interval_s,
    )


def name_problems(run_name: str, account: str | None, profile: Profile) -> list[Problem]:
    """Return what is wrong with the name of a run or job, and with its account."""
    problems = []
    if not RUN_NAME.fullmatch(run_name):
        problems.append(
            Problem(
                place="--name",
                field="",
                message=f"{run_name!r} is not a run name",
                hint="up to 100 letters, digits, '_', '.' and '-', the first a letter or digit",
            )
        )
    if account is not None and not ACCOUNT.fullmatch(account):
        problems.append(
            Problem(
                place="--account",
                field="",
                message=f"{account!r} is not an account",
                hint="letters, digits, '_', '.', '@' and '-' only",
            )
        )
    if account is None and profile.account.required:
        find = f"; `{profile.account.discover}` lists yours" if profile.account.discover else ""
        problems.append(
            Problem(
                place=f"profile {profile.name!r}",
                field="account",
                message="this site needs an account and none was given",
                hint=f"--account NAME, or HPCGEMMA_ACCOUNT, or accounts.{profile.name} in config.yaml{find}",
            )
        )
    return problems
