"""`hpcgemma drill` on this machine: a run that is really warned, ended and killed, and its report."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.scenario import Terminal, Training, wait_until

QUICK = (
    *("--set", "training.max_steps=240", "--set", "checkpoint.every_steps=30"),
    *("--set", "training.global_batch=8", "--set", "resources.gpus_per_node=1"),
)


@pytest.fixture(scope="module")
def drilled(terminal: Terminal) -> Training:
    """A run that was drilled with every act there is here, and what the drill printed."""
    said = terminal.call("drill", "--profile", "local", "--name", "drilled", *QUICK, timeout_s=600)
    assert "a drill of 1 node of 1 rank on CPUs, as the profile allows" in said.stderr
    assert "act 4 of 4, job-killed: SIGKILL to ranks and supervisor" in said.stderr
    head = "ACT SEEN SAVED BACK QUEUE START STEP LOST SAME WENT ON"
    assert said.stdout.splitlines()[0].split() == head.split()
    run = terminal.training("drilled")
    kept = (run.folder / "drill.txt").read_text().splitlines()
    assert kept == [line.rstrip() for line in said.stdout.splitlines()]
    return run


def test_a_drill_warns_ends_and_kills_a_run_that_comes_back_each_time_in_the_same_bits(drilled: Training) -> None:
    folder = drilled.folder
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
        assert 0 < killed["lost_steps"] <= killed["allowed_loss"] == 30
        assert killed["repeated_steps"] == killed["lost_steps"]
        assert killed["same_bits"] is True
    assert [act["way"] for act in report["acts"]] == ["requeue", "in place", "resume", "resume"]
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    done = [(event["act"], event["command"].split()[:2]) for event in events if event["event"] == "drilled"]
    assert list(dict.fromkeys((act, *words) for act, words in done)) == [
        ("warned", "kill", "-USR2"),
        ("ranks-killed", "kill", "-KILL"),
        ("stopped", "kill", "-TERM"),
        ("job-killed", "kill", "-KILL"),
    ]


def test_the_page_of_a_drilled_run_says_of_its_attempts_what_the_drill_says(drilled: Training) -> None:
    """Two ways to the same figures: the drill counts from its acts, the page from the run's attempts."""
    page = drilled.terminal.json("report", drilled.name)
    acts = json.loads((drilled.folder / "drill.json").read_text())["acts"]
    rows = {row["number"]: row for row in page["attempts"]}
    for act in acts:
        row = rows[act["attempt"]]
        assert (row["lost_steps"], row["way"]) == (act["lost_steps"], act["way"])
        assert row["last_step"] == act["reached_step"]
    assert page["facts"]["time"]["lost_steps"] == sum(row["lost_steps"] for row in rows.values())
    assert "on purpose" in (drilled.folder / "report.html").read_text()


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
