"""Rows 19, 20, 24 to 26, 28 and 30: two jobs on one run, runs that cannot go on, and what the owner does."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.scenario import RECIPE, Terminal, Training, wait_until
from tests.slurm.login import REQUEUE, SUCCESSOR, freeze_at_notice, nodes_of, preempt, run_ids, second_job

from .checkpoints import cancel
from .lab import Lab
from .observation import Observation


def two_jobs(lab: Lab) -> Observation:
    """A second job begins on the folder of a run that trains."""
    run = lab.submit("two-jobs")
    run.wait_for_step(20)
    run.freeze()
    second = second_job(run, lab.cluster, "submitted", by="launcher")
    fault = time.time()
    lab.cluster.run("scontrol", "release", second)
    refused = run.wait_for_event("refused")
    assert refused["job_id"] == second
    assert refused["sentence"].startswith(f"another job works on this run: job {run.job_id} on ")
    lab.cluster.wait_for(lambda: lab.cluster.job_state(second) == "FAILED", "the second job's end")
    assert "ExitCode=2:0" in lab.cluster.run("scontrol", "show", "job", second).stdout
    said = run.status()
    assert (said["state"], said["job_id"], said["sentence"]) == ("RUNNING", run.job_id, "training")
    run.thaw()
    seen = lab.completed(run, "the second refused with exit code 2, the first went on", [fault])
    assert run_ids(run, "started") == [run.job_id]
    return seen


def successor_and_requeue(lab: Lab) -> Observation:
    """A successor begins at the moment of Slurm's own requeue of the job before it."""
    run = lab.submit("successor-and-requeue")
    run.wait_for_step(20)
    run.freeze()
    successor = second_job(run, lab.cluster, "continued", by="successor")
    fault = time.time()
    lab.cluster.run("scontrol", "requeue", run.job_id)
    lab.cluster.run("scontrol", "release", successor)
    seen = lab.completed(run, "exactly one went on, the other ended itself", [fault], lost=20)
    both = (run.job_id, successor)
    lab.cluster.wait_for(lambda: all(lab.cluster.job_state(each) == "COMPLETED" for each in both), "both jobs' end")
    first, second = run_ids(run, "started")
    assert first == run.job_id
    assert second in both
    assert "another job goes on with this run" in run.logs()
    return seen


def submitted_twice(lab: Lab) -> Observation:
    """Two terminals submit a run of one name at once."""
    name = f"submitted-twice-{lab.tracking}"
    shutil.rmtree(Path(lab.terminal.environment["HPCGEMMA_RUNS_DIR"]) / name, ignore_errors=True)
    command = ("submit", "--profile", SUCCESSOR, "--recipe", str(RECIPE), "--name", name, "--json")
    both = [lab.login.start(*command) for _ in range(2)]
    for process in both:
        process.communicate(timeout=240)
    codes = sorted(process.returncode for process in both)
    assert codes == [0, 2], codes
    jobs = lab.cluster.run("squeue", "-h", "-n", name, "-o", "%i").stdout.split()
    run = lab.login.training(name)
    assert jobs in ([run.job_id], [])
    assert run_ids(run, "submitted") == [run.job_id]
    lab.cluster.run("scancel", run.job_id)
    return Observation(happened="one job; the second command was refused with exit code 2")


def loss_not_finite(lab: Lab) -> Observation:
    """The loss becomes infinite or no number."""
    run = lab.submit("loss-not-finite", "--set", "optimizer.learning_rate=1e30")
    said = wait_until("the end", lambda: (said := run.status())["state"] == "FAILED" and said)
    [ended] = run.events("ended")
    assert ended["ending"] == "non_finite_loss"
    assert "optimizer.learning_rate" in said["hint"]
    lab.cluster.wait_for(lambda: lab.cluster.job_state(run.job_id) == "FAILED", "the job's end")
    assert len(run.events("started")) == 1
    return Observation(happened=f"FAILED at once, not tried again: {said['sentence']}")


def other_world_size(lab: Lab) -> Observation:
    """The run goes on with one rank in place of two, and then with two again."""
    run = lab.submit("other-world-size")
    run.wait_for_step(30)
    cancel(lab, run)
    lab.login.call("resume", run.name, "--set", "resources.nodes=1")
    run.wait_for_event("training", count=2)
    run.wait_for_step(70)
    cancel(lab, run)
    lab.login.call("resume", run.name, "--set", "resources.nodes=2")
    assert run.wait_for_end()["state"] == "COMPLETED", run.logs()
    assert [event["ranks"] for event in run.events("started")] == [2, 1, 2]
    expected = lab.reference.losses()
    assert run.losses().keys() == expected.keys()
    for step, values in run.losses().items():
        assert values == pytest.approx(expected[step], rel=1e-3)
    steps = [line["step"] for line in run.metrics()]
    assert len(steps) == len(set(steps))
    return Observation(happened="the same rows in the same steps; losses within 1e-3", lost_steps=0, equal=False)


def other_recipe(lab: Lab) -> Observation:
    """The learning rate is another when the run is resumed."""
    run = lab.submit("other-recipe")
    run.wait_for_step(20)
    cancel(lab, run)
    hotter = ("--set", "optimizer.learning_rate=0.005")
    refused = lab.login.call("resume", run.name, *hotter, code=2).stderr
    assert "optimizer.learning_rate: 0.004 -> 0.005 decides what the weights become" in refused
    assert "--allow-change recipe" in refused
    lab.login.call("resume", run.name, *hotter, "--allow-change", "recipe")
    assert run.wait_for_end()["state"] == "COMPLETED", run.logs()
    return Observation(happened="refused with the difference; with --allow-change it went on", lost_steps=0)


def other_library(lab: Lab) -> Observation:
    """A library that decides the result has another version when the run is resumed."""
    run = lab.submit("other-library")
    run.wait_for_step(20)
    cancel(lab, run)
    metadata = lab.folder / f"upgraded-{lab.tracking}" / "accelerate-99.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True, exist_ok=True)
    metadata.write_text("Metadata-Version: 2.1\nName: accelerate\nVersion: 99.0\n")
    upgraded = Terminal(lab.login.folder, {**lab.login.environment, "PYTHONPATH": str(metadata.parent.parent)})
    refused = upgraded.call("resume", run.name, code=2).stderr
    assert "-> 99.0" in refused
    assert "--allow-change libraries" in refused
    lab.login.call("resume", run.name)
    return lab.completed(run, "refused with the difference; with the old version it went on", [])


def no_progress(lab: Lab) -> Observation:
    """Every attempt dies before its first checkpoint."""
    run = lab.submit("no-progress")
    while not run.is_over():
        count = len(run.events("ended"))
        if len(run.events("training")) > count:
            for pid in run.rank_pids():
                os.kill(pid, signal.SIGKILL)
            run.wait_for_event("ended", count=count + 1)
    count, said = len(run.events("ended")), run.status()
    assert said["state"] == "FAILED"
    assert f"{count} attempts in a row made no new checkpoint" in said["sentence"]
    last = run.events("failed")[-1]["job_id"]
    lab.cluster.wait_for(lambda: lab.cluster.job_state(last) == "FAILED", "the job's end")
    assert not lab.login.json("nodes"), "no node is struck for what goes with the run"
    return Observation(happened=f"FAILED after {count} attempts: {said['sentence']}")


def cancelled_in_the_queue(lab: Lab) -> Observation:
    """scancel while the job waits."""
    lab.cluster.submit("--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=exec sleep 600")
    return _cancelled(lab, lab.submit("cancelled-waiting"))


def cancelled_in_training(lab: Lab) -> Observation:
    """scancel while the run trains."""
    run = lab.submit("cancelled-training")
    run.wait_for_step(25)
    run.freeze()
    return _cancelled(lab, run)


def cancelled_in_its_grace(lab: Lab) -> Observation:
    """scancel after the notice of a preemption, before the ranks have saved."""
    run = lab.submit("cancelled-grace")
    run.wait_for_step(25)
    freeze_at_notice(run, lambda: lab.cluster.urgent_job(nodes=nodes_of(lab.cluster, run.job_id), seconds=5))
    return _cancelled(lab, run)


def cancelled_after_requeue(lab: Lab) -> Observation:
    """scancel while the requeued job waits again."""
    run = lab.submit("cancelled-requeued", profile=REQUEUE)
    preempt(run, lab.cluster)
    wait_until("the queue", lambda: lab.cluster.job_state(run.job_id) == "PENDING")
    return _cancelled(lab, run)


def _cancelled(lab: Lab, run: Training) -> Observation:
    fault, started = time.time(), len(run.events("started"))
    answer = lab.cluster.run("scancel", run.job_id)
    assert answer.returncode == 0, answer.stderr
    said = wait_until("the end", lambda: (said := run.status())["state"] == "CANCELLED" and said)
    assert "cancelled" in said["sentence"]
    assert f"hpcgemma resume {run.name}" in said["hint"]
    own = ("squeue", "-h", "-n", run.name)
    lab.cluster.wait_for(lambda: not lab.cluster.run(*own).stdout.strip(), "no job of the run to be left")
    assert len(run.events("started")) == started
    noticed = next((event["time"] - fault for event in run.events() if event["event"] == "cancelled"), None)
    return Observation(happened=f"CANCELLED: {said['sentence']}; nothing was started again", noticed_s=noticed)
