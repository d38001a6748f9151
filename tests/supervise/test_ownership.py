from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.lock import Holder, RunLock, newest_claim
from hpcgemma.runs.store import RunEntry
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.records import JobDetails, JobRecord
from hpcgemma.supervise import ownership
from hpcgemma.supervise.allocation import Allocation
from hpcgemma.supervise.ownership import Judge, has_ended, holder_here, take_run

ENTRY = RunEntry(run_id="id", name="run", path="/run", profile="leonardo", recipe="r", scheduler="slurm", created=0.0)
HERE = Allocation(job_id="8", on_slurm=True, host=os.uname().nodename, node_list="", restarts=0)
HOLDER = holder_here(replace(HERE, job_id="7", restarts=1))


def job(state: str, *, restarts: int = 1, comment: str = "hpcgemma:id") -> JobDetails:
    record = JobRecord(job_id="7", state=state, restarts=restarts, comment=comment, source="scontrol")
    return JobDetails(
        record=record, requeue=True, preempt_time=None, batch_host="", std_out="", std_err="", command="", fields={}
    )


@pytest.mark.parametrize(
    ("details", "ended"),
    [
        (None, True),  # the controller has forgotten it
        (job("COMPLETED"), True),
        (job("PREEMPTED"), True),
        (job("NODE_FAIL"), True),
        (job("PENDING", restarts=2), True),  # requeued: that start of it is over
        (job("RUNNING", restarts=2), True),
        (job("RUNNING", comment="hpcgemma:other"), True),  # its number was given anew
        (job("RUNNING"), False),
        (job("SUSPENDED"), False),
        (job("A_STATE_OF_TOMORROW"), False),
        (job("COMPLETING"), None),
        (job("COMPLETING", restarts=2), None),
    ],
)
def test_whether_a_job_that_held_the_lock_has_ended_is_the_controllers_word(
    details: JobDetails | None, ended: bool | None
) -> None:
    assert has_ended(details, HOLDER, ENTRY) is ended


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def is_over(folder: RunFolder, holder: Holder, here: Allocation) -> bool:
    RunLock.take(folder, holder, lambda claim: True)
    claim = newest_claim(folder)
    assert claim is not None
    return Judge(ENTRY, here, SlurmClient()).is_over(claim)


def gone_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_local_holder_is_over_when_its_process_is(folder: RunFolder) -> None:
    here = replace(HERE, on_slurm=False)
    holder = holder_here(replace(here, job_id="7"))
    assert not is_over(folder, holder, here)
    assert is_over(folder, replace(holder, pid=gone_process()), here)
    assert is_over(folder, replace(holder, start_ticks=1), here)  # another process with its number
    assert is_over(folder, replace(holder, boot="before the machine was started anew"), here)


def test_an_earlier_start_of_the_same_job_is_over(folder: RunFolder) -> None:
    here = replace(HERE, job_id="7", restarts=2)
    assert is_over(folder, HOLDER, here)
    assert is_over(folder, replace(HOLDER, host="elsewhere"), here)
    assert not is_over(folder, replace(HOLDER, restarts=2), here)  # a process of this very start
    assert is_over(folder, replace(HOLDER, restarts=2, pid=gone_process()), here)


def test_a_holder_that_nobody_can_be_asked_about_is_over_when_it_shows_no_life(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "_WATCHED_S", 0.3)
    monkeypatch.setattr(ownership, "_BETWEEN_QUESTIONS_S", 0.05)
    here = replace(HERE, on_slurm=False)
    elsewhere = replace(HOLDER, on_slurm=False, host="elsewhere")
    assert is_over(folder, elsewhere, here)
    monkeypatch.setenv("PATH", "/nowhere")  # and Slurm does not answer
    assert is_over(folder, HOLDER, HERE)

    lock = RunLock.take(folder, elsewhere, lambda claim: True)
    claim = newest_claim(folder)
    lock.beat(attempt=1)
    assert claim is not None
    assert not Judge(ENTRY, here, SlurmClient()).is_over(claim)
    lock.release()
    assert Judge(ENTRY, here, SlurmClient()).is_over(claim)


def test_the_lock_is_taken_for_this_process(folder: RunFolder) -> None:
    take_run(folder, ENTRY, HERE, SlurmClient())
    claim = newest_claim(folder)
    assert claim is not None
    assert claim.holder == holder_here(HERE)
