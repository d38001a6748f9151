from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from hpcgemma.preemption import Preemption
from hpcgemma.slurm.records import JobDetails, JobRecord
from hpcgemma.supervise.cause import WarningCause, cause_of

START = datetime(2026, 11, 20, 12, 0, 0)


def details(state: str, *, ran_s: float, preempted: bool = False, restarts: int = 0, **more: Any) -> JobDetails:
    """Return a job of ten minutes that ends, as Slurm has it, so many seconds after its start."""
    record = JobRecord(
        job_id="7",
        state=state,
        start_time=START,
        end_time=START + timedelta(seconds=ran_s),
        time_limit_min=10,
        restarts=restarts,
        source="scontrol",
        **more,
    )
    return JobDetails(
        record=record,
        requeue=True,
        preempt_time=START if preempted else None,
        batch_host="",
        std_out="",
        std_err="",
        command="",
        fields={},
    )


# Each as `scontrol show job` printed it on Slurm 22.05 while the ranks were saving.
@pytest.mark.parametrize(
    ("seen", "cause"),
    [
        (details("RUNNING", ran_s=40, preempted=True), WarningCause.PREEMPTED),
        (details("COMPLETING", ran_s=30), WarningCause.CANCELLED),
        (details("CANCELLED", ran_s=30), WarningCause.CANCELLED),
        (details("COMPLETING", ran_s=600, restarts=1), WarningCause.REQUEUED),
        (details("COMPLETING", ran_s=627), WarningCause.TIME_LIMIT),
        (details("TIMEOUT", ran_s=627), WarningCause.TIME_LIMIT),
        (details("RUNNING", ran_s=600), WarningCause.TIME_LIMIT),
        (None, WarningCause.UNKNOWN),
    ],
)
def test_the_cause_of_a_warning_follows_from_the_jobs_record(seen: JobDetails | None, cause: WarningCause) -> None:
    now = (START + timedelta(seconds=560)).timestamp()
    assert cause_of(seen, lead_s=60, restarts=0, now=now) is cause


REQUEUED = Preemption(mode="requeue", grace_s=60)
CANCELLED = Preemption(mode="cancel", grace_s=60)


@pytest.mark.parametrize(
    ("ran_s", "preemption", "cause"),
    [
        (10, REQUEUED, WarningCause.CANCELLED),
        (0, REQUEUED, WarningCause.CANCELLED),
        (60, REQUEUED, WarningCause.PREEMPTED),
        (0, replace(REQUEUED, grace_s=0), WarningCause.PREEMPTED),
        (10, replace(REQUEUED, grace_s=None), WarningCause.PREEMPTED),
        (10, None, WarningCause.PREEMPTED),
        (10, CANCELLED, WarningCause.CANCELLED),
        (0, CANCELLED, WarningCause.PREEMPTED),  # Slurm has moved PreemptTime to the end of the grace
        (1, CANCELLED, WarningCause.PREEMPTED),
        (60, CANCELLED, WarningCause.PREEMPTED),
    ],
)
def test_a_preempted_job_that_ends_before_its_grace_was_cancelled(
    ran_s: float, preemption: Preemption | None, cause: WarningCause
) -> None:
    seen = details("COMPLETING", ran_s=ran_s, preempted=True)
    assert cause_of(seen, lead_s=60, restarts=0, now=START.timestamp() + ran_s, preemption=preemption) is cause


def test_a_job_that_may_not_be_requeued_is_cancelled_at_the_end_of_its_grace() -> None:
    seen = replace(details("COMPLETING", ran_s=0, preempted=True), requeue=False)
    assert cause_of(seen, lead_s=60, restarts=0, now=START.timestamp(), preemption=REQUEUED) is WarningCause.PREEMPTED


def test_a_signal_long_before_the_end_was_sent_by_hand() -> None:
    now = (START + timedelta(seconds=10)).timestamp()
    seen = details("RUNNING", ran_s=600)
    assert cause_of(seen, lead_s=60, restarts=0, now=now) is WarningCause.SIGNALLED


def test_a_job_requeued_before_is_not_taken_for_one_requeued_now() -> None:
    now = (START + timedelta(seconds=560)).timestamp()
    seen = details("COMPLETING", ran_s=30, restarts=2)
    assert cause_of(seen, lead_s=60, restarts=2, now=now) is WarningCause.CANCELLED
