"""`hpcgemma drill` on this machine: a run that is really warned, ended and killed, and its report."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from tests.scenario import Terminal, wait_until

QUICK = (
    *("--set", "training.max_steps=240", "--set", "checkpoint.every_steps=30"),
    *("--set", "training.global_batch=8", "--set", "resources.gpus_per_node=1"),
)


def test_a_drill_warns_ends_and_kills_a_run_that_comes_back_each_time_in_the_same_bits(terminal: Terminal) -> None:
    said = terminal.call("drill", "--profile", "local", "--name", "drilled", *QUICK, timeout_s=600)
    folder = Path(terminal.environment["HPCGEMMA_RUNS_DIR"]) / "drilled"
    assert "a drill of 1 node of 1 rank on CPUs, as the profile allows" in said.stderr
    assert "act 4 of 4, job-killed: SIGKILL to ranks and supervisor" in said.stderr
    head = "ACT SEEN SAVED BACK QUEUE START STEP LOST SAME WENT ON"
    assert said.stdout.splitlines()[0].split() == head.split()
    assert (folder / "drill.txt").read_text().splitlines() == [line.rstrip() for line in said.stdout.splitlines()]

    report = json.loads((folder / "drill.json").read_text())
    assert report["succeeded"] is True
    assert report["end"].startswith("COMPLETED: finished at step ")
    assert report["not_done"] == []
    warned, ranks_killed, stopped, job_killed = report["acts"]
    assert [warned["act"], ranks_killed["act"], stopped["act"], job_killed["act"]] == [
        *("warned", "ranks-killed", "stopped", "job-killed"),
    ]
    for announced in (warned, stopped):
        assert announced["lost_steps"] == 0
        assert announced["resumed_step"] == announced["reached_step"] > 30
        assert 0 <= announced["saved_in_s"] < announced["back_after_s"]
    for killed in (ranks_killed, job_killed):
        assert 0 <= killed["lost_steps"] <= killed["allowed_loss"] == 30
        assert killed["repeated_steps"] == killed["lost_steps"]
        assert killed["same_bits"] is (True if killed["lost_steps"] else None), "0: it had just saved"
    assert [act["way"] for act in report["acts"]] == ["requeue", "in place", "resume", "resume"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    drilled = [(event["act"], event["command"].split()[:2]) for event in events if event["event"] == "drilled"]
    assert drilled == [
        ("warned", ["kill", "-USR2"]),
        ("ranks-killed", ["kill", "-KILL"]),
        ("stopped", ["kill", "-TERM"]),
        ("job-killed", ["kill", "-KILL"]),
    ]


def test_ctrl_c_cancels_the_run_and_reports_what_was_seen(terminal: Terminal) -> None:
    drill = terminal.start("drill", "--profile", "local", "--name", "broken-off", "--act", "warned", "--json")
    run = terminal.training("broken-off")
    wait_until("the first steps", lambda: run.step() >= 5)
    os.killpg(drill.pid, signal.SIGINT)
    out, err = drill.communicate(timeout=60)
    assert drill.returncode == 130
    assert "run broken-off is cancelled: it saves and ends" in err
    report = json.loads(out)
    assert (report["succeeded"], report["acts"], report["not_done"]) == (False, [], ["warned"])
    assert wait_until("the end", lambda: (said := run.status())["state"] == "CANCELLED" and said)


def test_what_would_be_done_is_shown_and_not_done(terminal: Terminal) -> None:
    said = terminal.call("drill", "--profile", "leonardo", "--account", "demo", "--name", "planned", "--dry-run")
    assert "on CPUs, in the profile's cpu_queue" in said.stderr
    assert "act 4 of 5, time-limit: the time limit comes near" in said.stderr
    assert "#SBATCH --partition=lrd_all_serial" in said.stdout
    assert "#SBATCH --time=00:20:00" in said.stdout
    assert "gres" not in said.stdout
    assert not (Path(terminal.environment["HPCGEMMA_RUNS_DIR"]) / "planned").exists()


def test_an_act_that_needs_a_queue_is_refused_here(terminal: Terminal) -> None:
    said = terminal.call("drill", "--profile", "local", "--act", "time-limit", code=2)
    assert said.stderr.startswith("Error: there is no act time-limit in a drill on this machine\nTry:   --act with one")
