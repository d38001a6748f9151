"""Row 31: one run meets one fault after the other."""

from __future__ import annotations

import os
import signal
import time

from tests.slurm.login import preempt

from .checkpoints import cancel
from .lab import Lab
from .observation import Observation
from .processes import supervisor_of
from .signals import warn


def one_after_the_other(lab: Lab) -> Observation:
    """Preemption, SIGKILL of a rank, a warning by hand, SIGKILL of the supervisor, and scancel, all of one run."""
    run = lab.submit("one-after-the-other")
    faults = [preempt(run, lab.cluster, step=15)]

    run.wait_for_event("training", count=2)
    run.wait_for_step(35)
    faults.append(time.time())
    os.kill(run.rank_pids()[1], signal.SIGKILL)

    run.wait_for_event("training", count=3)
    run.wait_for_step(55)
    run.freeze()
    warnings = len(run.events("warned"))
    faults.append(warn(lab, run))
    run.wait_for_event("warned", count=warnings + 1)
    run.thaw()

    run.wait_for_event("training", count=4)
    run.wait_for_step(75)
    faults.append(time.time())
    os.kill(supervisor_of(lab, run), signal.SIGKILL)
    lab.resume(run)

    run.wait_for_event("training", count=5)
    run.wait_for_step(95)
    cancel(lab, run)
    lab.resume(run)

    seen = lab.completed(run, "went on after each", faults, lost=60)
    endings = [event["ending"] for event in run.events("ended")]
    assert endings[:3] == ["stopped", "rank_died", "stopped"]
    assert endings[-1] == "finished"
    return seen
