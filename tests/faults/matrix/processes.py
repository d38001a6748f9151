"""Rows 3, 8, 11, 21 and 22: processes of a run are killed, stopped, slowed or out of memory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from tests.scenario import Training, wait_until
from tests.slurm.login import run_ids

from .lab import Lab
from .observation import Observation


def rank_killed(lab: Lab) -> Observation:
    """SIGKILL of one rank."""
    run = lab.submit("rank-killed")
    run.wait_for_step(30)
    fault = time.time()
    os.kill(run.rank_pids()[1], signal.SIGKILL)
    seen = lab.completed(run, "relaunched in the same allocation", [fault], lost=95)
    ended = run.events("ended")[0]
    assert (ended["ending"], ended["sentence"]) == ("rank_died", "rank 1 was killed by SIGKILL")
    assert run_ids(run, "started") == [run.job_id, run.job_id]
    return seen


def step_killed(lab: Lab) -> Observation:
    """SIGKILL of all ranks by scancel."""
    run = lab.submit("step-killed")
    run.wait_for_step(30)
    fault = time.time()
    steps = lab.cluster.run("squeue", "-h", "--steps", f"--jobs={run.job_id}", "-o", "%i").stdout.split()
    [ranks] = [step for step in steps if step.rpartition(".")[2].isdigit()]
    killed = lab.cluster.run("scancel", "--signal=KILL", ranks)
    assert killed.returncode == 0, killed.stderr
    seen = lab.completed(run, "relaunched in the same allocation", [fault], lost=95)
    assert run.events("ended")[0]["ending"] == "rank_died"
    assert run_ids(run, "started") == [run.job_id, run.job_id]
    return seen


def supervisor_killed(lab: Lab) -> Observation:
    """SIGKILL of the supervisor: Slurm calls the job failed, and nobody is left to go on."""
    run = lab.submit("supervisor-killed")
    run.wait_for_step(25)
    fault = time.time()
    os.kill(supervisor_of(lab, run), signal.SIGKILL)
    said = lab.resume(run)
    assert said["sentence"].startswith(f"job {run.job_id} ended as ")
    assert f"hpcgemma resume {run.name}" in said["hint"]
    happened = "shown as INTERRUPTED with `hpcgemma resume`, which went on"
    return lab.completed(run, happened, [fault], lost=95)


def supervisor_of_a_chain_killed(lab: Lab) -> Observation:
    """The same where a link waits."""
    run = lab.submit("chained-supervisor-killed", "--links", "2")
    run.wait_for_step(25)
    fault = time.time()
    os.kill(supervisor_of(lab, run), signal.SIGKILL)
    seen = lab.completed(run, "the next link went on", [fault], lost=95)
    [link] = run_ids(run, "linked")
    assert run_ids(run, "started") == [run.job_id, link]
    return seen


def supervisor_of(lab: Lab, run: Training) -> int:
    """Return the process of a run's supervisor."""
    processes = lab.cluster.user_processes(run.events("started")[-1]["job_id"])
    [pid] = [pid for pid, line in processes.items() if "submitit.core._submit" in line]
    return pid


def killed_while_saving(lab: Lab) -> Observation:
    """SIGKILL of all ranks while they save."""
    return _struck_while_saving(lab, "killed-saving", lambda pids: pids, signal.SIGKILL)


def one_killed_while_saving(lab: Lab) -> Observation:
    """SIGKILL of rank 1 while all save."""
    return _struck_while_saving(lab, "one-killed-saving", lambda pids: pids[1:], signal.SIGKILL)


def stopped_while_saving(lab: Lab) -> Observation:
    """SIGSTOP of rank 1 while all save: the save hangs."""
    settings = ("--set", "watch.elsewhere_s=10")
    return _struck_while_saving(lab, "stopped-saving", lambda pids: pids[1:], signal.SIGSTOP, *settings)


def _struck_while_saving(
    lab: Lab, name: str, victims: Callable[[list[int]], list[int]], number: signal.Signals, *settings: str
) -> Observation:
    # Saves take a second by their slow flushes, so that the signal comes in the middle of one.
    disk = lab.disk()
    disk.delay(0.2, ("fsync", "*/.staging-*"))
    slow = lab.profile("slow_saves", env=disk.environment)
    run = lab.submit(name, *settings, "--set", "checkpoint.every_steps=10", profile=slow)
    run.wait_for_step(25)
    pids, folder = victims(run.rank_pids()), run.folder / "checkpoints"
    deadline = time.monotonic() + 60
    while not list(folder.glob(".staging-*/state/*")):
        assert time.monotonic() < deadline, "no checkpoint was staged"
    fault = time.time()
    for pid in pids:
        os.kill(pid, number)
    ended = run.wait_for_event("ended")
    seen = lab.completed(run, f"{ended['sentence']}; relaunched from the checkpoint before", [fault], lost=20)
    assert not run.events("set_aside"), "a half-written checkpoint had a good one's name"
    return seen


def rank_hangs(lab: Lab) -> Observation:
    """SIGSTOP of one rank while all train."""
    # Between the evaluations after steps 50 and 100 there is no other phase, whose silence is given half an hour.
    run = lab.submit("rank-hangs", "--set", "watch.training_s=8", "--set", "checkpoint.every_steps=1000")
    run.wait_for_step(62)
    fault = time.time()
    os.kill(run.rank_pids()[1], signal.SIGSTOP)
    seen = lab.completed(
        run, "named, its stacks written, ended after 8 s of silence (default 60 s), relaunched", [fault], lost=110
    )
    ended = run.events("ended")[0]
    assert (ended["ending"], ended["rank"]) == ("hung", 1)
    assert "Current thread" in (run.folder / "attempts" / "1" / "rank-0.log").read_text()
    assert run_ids(run, "started") == [run.job_id, run.job_id]
    return seen


def preparation_hangs(lab: Lab) -> Observation:
    """A read of the prepared data is never answered, until the attempt has ended."""
    disk = lab.disk()
    disk.delay(3600, ("read", "*/.prepared/*"))
    profile = lab.profile("silent_server", env=disk.environment)
    run = lab.submit("preparation-hangs", "--set", "watch.elsewhere_s=15", profile=profile)
    fault = run.wait_for_event("began")["time"]
    ended = run.wait_for_event("ended")
    disk.heal()
    assert (ended["ending"], ended["rank"]) == ("hung", None)
    assert ended["sentence"].startswith("the preparation of the data hangs: no sign of life for ")
    assert "in present_summary" in (run.folder / "attempts" / "1" / "prepare.log").read_text()
    happened = "found after 15 s of silence (default 1800 s), its stacks written, ended, started again"
    seen = lab.completed(run, happened, [fault])
    assert run_ids(run, "began") == [run.job_id, run.job_id]
    assert len(run.events("started")) == 1
    return seen


def rank_slow(lab: Lab) -> Observation:
    """Rank 1 is stopped three quarters of the time."""
    run = lab.submit("rank-slow", "--set", "training.max_steps=5000", "--set", "training.epochs=1000")
    run.wait_for_step(10)
    [_, pid], fault = run.rank_pids(), time.time()
    while not run.events("straggler"):
        assert time.time() < fault + 240, f"not reported\n{run.logs()}"
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.15)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.05)
    [event] = run.events("straggler")
    assert event["rank"] == 1
    lab.login.call("cancel", run.name)
    wait_until("the end", lambda: run.status()["state"] == "CANCELLED")
    return Observation(happened=f"reported: {event['sentence']}", noticed_s=event["time"] - fault)
