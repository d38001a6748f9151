"""Doing an act: by Slurm's own means, which every user has, or with signals to processes of this machine."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import time
from dataclasses import dataclass
from typing import Protocol

from hpcgemma.drill.acts import Act
from hpcgemma.plan import Plan
from hpcgemma.processes import child_pids, command_line
from hpcgemma.slurm import orders
from hpcgemma.slurm.client import OrderRefused, SlurmClient

_LEAST_S = 60
"""A lowered time limit leaves this much at least: Slurm looks every 30 s, and the ranks need some seconds to save."""
_TRAINER = "hpcgemma.train"


@dataclass(frozen=True, slots=True)
class Done:
    """What was done."""

    command: str
    """As a person would type it."""
    limit_at: float | None = None
    """When the lowered time limit ends the job, in seconds since 1970."""


class Stage(Protocol):
    """Where a run can be met."""

    def do(self, act: Act, job_id: str) -> Done:
        """Do an act to a job.

        Raises:
            OrderRefused: It is not allowed, or cannot be done there.
            SchedulerError: Slurm does not answer.
        """


class SlurmStage:
    """A job of Slurm.

    Args:
        plan: The run's.
        client: Runs Slurm's commands.
    """

    def __init__(self, plan: Plan, client: SlurmClient) -> None:
        self._plan, self._client = plan, client

    def do(self, act: Act, job_id: str) -> Done:
        """See Stage."""
        match act:
            case Act.WARNED:
                self._client.signal_batch(job_id, self._plan.signal)
                return _typed(orders.signal_batch_argv(job_id, self._plan.signal))
            case Act.RANKS_KILLED:
                return _typed(self._kill_ranks(job_id))
            case Act.REQUEUED:
                self._client.requeue(job_id)
                return _typed(orders.requeue_argv(job_id))
            case Act.TIME_LIMIT:
                return self._lower_limit(job_id)
            case Act.JOB_KILLED:
                ranks = self._kill_ranks(job_id)  # first: else Slurm would send them SIGTERM, at which they save
                self._client.signal_batch(job_id, "KILL")
                return _typed(ranks, orders.signal_batch_argv(job_id, "KILL"))
            case _:
                raise OrderRefused(f"{act.value} is no act for a job of Slurm", "leave it out")

    def _kill_ranks(self, job_id: str) -> list[str]:
        steps = self._client.steps(job_id)
        if not steps:
            raise OrderRefused(f"job {job_id} has no step with ranks", "the site may hide steps from their users")
        self._client.signal_step(steps[-1], "KILL")
        return orders.signal_step_argv(steps[-1], "KILL")

    def _lower_limit(self, job_id: str) -> Done:
        job = self._client.jobs([job_id]).get(job_id)
        if job is None or job.start_time is None:
            raise OrderRefused(f"job {job_id} has no known start, from which its time limit counts", "drill again")
        started = job.start_time.timestamp()
        minutes = limit_min(time.time() - started)
        if job.time_limit_min is not None and minutes >= job.time_limit_min:
            raise OrderRefused(f"the time limit of {job.time_limit_min} min is near already", "--time 00:30:00")
        self._client.set_time_limit(job_id, minutes)
        return Done(shlex.join(orders.set_time_limit_argv(job_id, minutes)), started + minutes * 60)


def limit_min(elapsed_s: float) -> int:
    """Return the least time limit, in whole minutes from a job's start, that leaves it time to be warned and save."""
    return math.ceil((elapsed_s + _LEAST_S) / 60)


class LocalStage:
    """A run on this machine: submitit's controller, the supervisor under it, and the ranks under that.

    Args:
        plan: The run's.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def do(self, act: Act, job_id: str) -> Done:
        """See Stage."""
        controller = int(job_id)
        supervisor = next(iter(child_pids(controller)), None)
        if supervisor is None:
            raise OrderRefused(f"process {controller} has no supervisor under it", "drill again")
        ranks = [pid for pid in child_pids(supervisor) if _TRAINER in command_line(pid)]
        match act:
            case Act.WARNED:
                return _kill(self._plan.signal, [supervisor])
            case Act.RANKS_KILLED:
                return _kill("KILL", ranks)
            case Act.STOPPED:
                return _kill("TERM", [controller])
            case Act.JOB_KILLED:  # the controller first: it would start the supervisor again
                return _kill("KILL", [controller, supervisor, *ranks])
            case _:
                raise OrderRefused(f"{act.value} needs a scheduler", "leave it out")


def _kill(name: str, pids: list[int]) -> Done:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(pid, signal.Signals[f"SIG{name}"])
    return _typed(["kill", f"-{name}", *map(str, pids)])


def _typed(*argvs: list[str]) -> Done:
    return Done("; ".join(shlex.join(argv) for argv in argvs))
