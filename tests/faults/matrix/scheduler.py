"""Rows 15 to 18: the scheduler is down, hangs, forgets, or its accounting is gone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

from tests.scenario import RECIPE, Training, wait_until
from tests.slurm.login import SUCCESSOR, nodes_of

from .lab import Lab
from .observation import Observation

_HANGS_S = (14.0, 60.0)


def down_at_submit_and_status(lab: Lab) -> Observation:
    """slurmctld is down when a run is submitted, and when one is asked about."""
    cluster = lab.configure(message_timeout_s=2)
    blocker = _block(lab)
    run = lab.submit("orphan")
    cluster.stop_controller()
    try:
        said = run.status()
        assert said["state"] == "UNKNOWN"
        assert re.search(r"; last known: starting, \d+ s ago$", said["sentence"])
        never = ("submit", "--profile", SUCCESSOR, "--recipe", str(RECIPE), "--name", "never")
        refused = lab.login.call(*never, code=3)
        assert "Try:" in refused.stderr
        assert not (Path(lab.terminal.environment["HPCGEMMA_RUNS_DIR"]) / "never").exists()
        lab.login.call("resume", run.name, code=3)
    finally:
        cluster.start_controller()
    wait_until("the controller", lambda: run.status()["state"] == "PENDING")
    cluster.run("scancel", blocker)
    return lab.completed(run, "nothing submitted (exit code 3), shown as UNKNOWN with its age, then PENDING", [])


def down_at_continuation(lab: Lab) -> Observation:
    """slurmctld goes down after the notice of a preemption, and is back 20 s later."""
    cluster = lab.configure(message_timeout_s=2, grace_time_s=120)
    run = lab.submit("down-at-continuation")
    run.wait_for_step(25)
    run.freeze()
    fault = time.time()
    urgent = cluster.urgent_job(nodes=nodes_of(cluster, run.job_id), seconds=5)
    cluster.wait_for(lambda: "PreemptTime=None" not in _job(lab, run.job_id), "the notice")
    cluster.stop_controller()
    try:
        run.thaw()
        run.wait_for_event("ended")
        time.sleep(max(0.0, fault + 20 - time.time()))  # the fault itself
    finally:
        cluster.start_controller()
    cluster.wait_for(lambda: cluster.job_state(urgent) in ("RUNNING", "COMPLETED"), "the urgent job's turn")
    seen = lab.completed(run, "saved, and tried again until Slurm answered", [fault])
    assert [event["by"] for event in run.events("continued")] == ["successor"]
    return seen


def _job(lab: Lab, job_id: str) -> str:
    return lab.cluster.run("scontrol", "show", "job", job_id).stdout


def hangs_at_submit(lab: Lab) -> Observation:
    """slurmctld hangs while runs are submitted: for 14 s, and for 60 s."""
    cluster = lab.configure()
    blocker = _block(lab)
    told = []
    for seconds in _HANGS_S:
        name = f"hangs-{seconds:.0f}-{lab.tracking}"
        folder = Path(lab.terminal.environment["HPCGEMMA_RUNS_DIR"]) / name
        shutil.rmtree(folder, ignore_errors=True)
        command = lab.login.start("submit", "--profile", SUCCESSOR, "--recipe", str(RECIPE), "--name", name)
        cluster.pause_controller()
        try:
            time.sleep(seconds)  # the fault itself
        finally:
            cluster.resume_controller()
        command.communicate(timeout=240)
        state = _known_state(lab, name) if folder.exists() else "no run"
        jobs = cluster.run("squeue", "-h", "-n", name, "-o", "%i").stdout.split()
        assert (command.returncode, state, len(jobs)) in ((0, "PENDING", 1), (3, "PENDING", 1), (3, "no run", 0))
        told.append(f"{seconds:.0f} s: exit code {command.returncode}, {len(jobs)} job in the queue")
    cluster.run("scancel", blocker)
    return Observation(happened="; ".join(told))


def _known_state(lab: Lab, name: str) -> str:
    def known() -> str:
        state = str(lab.login.json("status", name)["state"])
        return "" if state == "UNKNOWN" else state

    return str(wait_until("its state", known))


def hangs_at_status(lab: Lab) -> Observation:
    """slurmctld hangs while a run is asked about."""
    cluster = lab.configure(message_timeout_s=2)
    run = lab.submit("hangs-at-status")
    run.wait_for_step(20)
    run.freeze()
    cluster.pause_controller()
    try:
        said = run.status()
    finally:
        cluster.resume_controller()
    run.thaw()
    assert said["state"] == "UNKNOWN"
    assert re.search(r"; last known: training, \d+ s ago$", said["sentence"])
    return lab.completed(run, "shown as UNKNOWN with what was last known, and its age; the run did not notice", [])


def id_used_twice(lab: Lab) -> Observation:
    """slurmctld crashes just after a submission, forgets the job, and gives its id to another one."""
    cluster = lab.configure()
    blocker = _block(lab)
    cluster.stop_controller()  # which writes down the blocker
    cluster.start_controller()
    forgotten: list[Training] = []
    cluster.crash_controller(forgetting=lambda: forgotten.append(lab.submit("id-used-twice")))
    cluster.start_controller()
    [run] = forgotten
    cluster.wait_for(lambda: cluster.job_state(blocker) == "RUNNING", "the blocker to be known again")
    other = cluster.submit("--output=/dev/null", "--job-name=of-somebody", "--wrap=exec sleep 600")
    assert other == run.job_id, "the id was not given again"
    said = run.status()
    assert said["state"] == "INTERRUPTED", said
    lab.login.call("cancel", run.name)
    assert cluster.job_state(other) in ("PENDING", "RUNNING"), "another's job was cancelled"
    lab.login.call("resume", run.name)
    cluster.run("scancel", blocker, other)
    return lab.completed(
        run, "known by its comment to be another's job: INTERRUPTED, and `hpcgemma resume` went on", []
    )


def accounting_down(lab: Lab) -> Observation:
    """slurmdbd is down while a run trains, and when it has ended and slurmctld has forgotten it."""
    cluster = lab.configure(accounting=True, min_job_age=2)
    run = lab.submit("accounting-down", "--account", "demo_acc")
    run.wait_for_step(20)
    run.freeze()
    cluster.stop_database()
    try:
        said = run.status()
        assert (said["state"], said["sentence"]) == ("RUNNING", "training")
        run.thaw()
        seen = lab.completed(run, "RUNNING by slurmctld, then COMPLETED by the run's own events", [])
        cluster.wait_for(lambda: not cluster.job_state(run.job_id), "the job to be forgotten")
        assert run.status()["state"] == "COMPLETED"
    finally:
        cluster.start_database()
    return seen


def purged(lab: Lab) -> Observation:
    """Without accounting, a cancelled job is forgotten by slurmctld."""
    cluster = lab.configure(min_job_age=2)
    run = lab.submit("purged")
    run.wait_for_step(20)
    os.kill(next(iter(_supervisors(lab, run))), signal.SIGKILL)
    cluster.wait_for(lambda: not cluster.job_state(run.job_id), "the job to be forgotten", timeout_s=180)
    said = run.status()
    assert said["state"] == "INTERRUPTED"
    assert "no longer known to the scheduler" in said["sentence"]
    lab.login.call("resume", run.name)
    return lab.completed(run, "INTERRUPTED: no longer known to the scheduler; `hpcgemma resume` went on", [], lost=95)


def _supervisors(lab: Lab, run: Training) -> list[int]:
    return [pid for pid, line in lab.cluster.user_processes(run.job_id).items() if "submitit.core._submit" in line]


def _block(lab: Lab) -> str:
    """Take all nodes, so that what is submitted stays in the queue."""
    blocker = lab.cluster.submit("--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=exec sleep 3600")
    lab.cluster.wait_for(lambda: lab.cluster.job_state(blocker) == "RUNNING", "the blocker")
    return blocker
