"""The main job on this machine: run, be warned, be killed, be cancelled, go on, and end in the same bits."""

from __future__ import annotations

import os
import re
import signal
import textwrap
from pathlib import Path

import pytest

from hpcgemma.runs.restart import PARTS, restarts
from tests.scenario import RECIPE, Terminal, Training, assert_same_training, wait_until


def supervisor_pid(run: Training) -> int:
    """Return the child of submitit's controller."""
    children = Path(f"/proc/{run.job_id}/task/{run.job_id}/children")
    return int(wait_until("the supervisor", lambda: children.read_text().split())[0])


def test_a_run_completes_and_is_described_in_words_and_json(reference: Training) -> None:
    terminal = reference.terminal
    said = reference.status()
    assert said["state"] == "COMPLETED"
    assert said["sentence"] == "finished at step 120"
    assert (said["step"], said["total_steps"], said["attempts"]) == (120, 120, 1)
    assert said["final"] == str(reference.folder / "final")
    words = terminal.call("status", reference.job_id).stdout
    assert "COMPLETED: finished at step 120" in words
    assert str(reference.folder / "final") in words
    assert "reference" in terminal.call("status").stdout


def test_a_warned_run_saves_and_goes_on_by_itself(terminal: Terminal, reference: Training) -> None:
    run = terminal.submit("warned", "local")
    run.wait_for_step(30)
    run.freeze()
    os.kill(supervisor_pid(run), signal.SIGUSR2)
    run.wait_for_event("warned")
    run.thaw()
    assert run.wait_for_end()["state"] == "COMPLETED"
    [continued] = run.events("continued")
    assert continued["by"] == "requeue"
    stopped = run.events("ended")[0]
    assert stopped["ending"] == "stopped"
    assert run.events("resumed")[-1]["step"] == stopped["step"] >= 30
    assert_same_training(run, reference)


@pytest.mark.slow  # the same on Slurm, in both of its ways, is in tests/faults/matrix
def test_a_time_limit_is_survived(terminal: Terminal, reference: Training) -> None:
    profile = terminal.folder / "short.yaml"
    profile.write_text(
        textwrap.dedent("""\
        extends: local
        name: short
        continuation: {mode: requeue, signal: USR2, lead_s: 35}
        """)
    )
    run = terminal.submit("limited", str(profile), "--time", "1")
    run.wait_for_step(10)
    run.freeze()
    run.wait_for_event("warned")
    run.thaw()
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert run.events("warned")[0]["signal"] == "SIGUSR2"
    assert_same_training(run, reference)


def test_a_killed_rank_is_relaunched_in_place(terminal: Terminal, reference: Training) -> None:
    run = terminal.submit("killed", "local")
    run.wait_for_step(30)
    os.kill(run.rank_pids()[1], signal.SIGKILL)
    assert run.wait_for_end()["state"] == "COMPLETED"
    ended = run.events("ended")[0]
    assert (ended["ending"], ended["sentence"]) == ("rank_died", "rank 1 was killed by SIGKILL")
    assert run.events("relaunched")
    assert run.events("resumed")[-1]["step"] % 20 == 0
    assert len({event["job_id"] for event in run.events("started")}) == 1
    assert_same_training(run, reference)

    time = run.status()["time"]
    killed_at = max(line["step"] for line in run.metrics() if line["attempt"] == 1)
    assert time["lost_steps"] == killed_at - run.events("resumed")[-1]["step"]
    assert time["saving_s"] == pytest.approx(sum(event["seconds"] for event in run.events("saved")), rel=0.2)
    used = sum(time[f"{word}_s"] for word in ("productive", "saving", "restarting", "lost"))
    assert used == pytest.approx(run.events("ended")[-1]["time"] - run.events("began")[0]["time"], abs=0.01)
    assert time["ettr"] == pytest.approx(time["productive_s"] / used, abs=1e-3)
    assert 0 < time["ettr"] < 1
    assert time["predicted_ettr"].keys() == {"2 h", "24 h"}
    assert tuple(time["restart_s"]) == PARTS
    measured = restarts(run.events())
    assert len(measured) == 2
    started_s = run.events("training")[1]["time"] - run.events("began")[1]["time"]
    assert sum(measured[1].values()) == pytest.approx(started_s, abs=0.1), "the job had begun before"
    words = terminal.call("status", run.name).stdout
    assert re.search(r"ETTR +0\.\d{3}: [\w ]+ productive, [\w ]+ saving, [\w ]+ restarting, [\w ]+ lost", words)
    assert re.search(r"restart +[\d.]+ s from its nodes to its first step: \w+ [\d.]+ s, ", words)
    assert re.search(r"predicted +ETTR by unannounced interruptions: 0\.\d{3} every 2 h, 0\.\d{3} every 24 h", words)


def test_a_rank_that_hangs_is_named_ended_with_its_stacks_and_relaunched(
    terminal: Terminal, reference: Training
) -> None:
    # Between the evaluations after steps 50 and 100 there is no other phase, whose silence is given half an hour.
    settings = ("--set", "watch.training_s=8", "--set", "checkpoint.every_steps=1000")
    run = terminal.submit("hung", "local", *settings)
    run.wait_for_step(62)
    os.kill(run.rank_pids()[1], signal.SIGSTOP)
    ended = run.wait_for_event("ended")
    assert (ended["ending"], ended["rank"]) == ("hung", 1)
    assert re.fullmatch(r"rank 1 hangs \(training, after step \d+\): no sign of life for \d+ s", ended["sentence"])
    stacks = (run.folder / "attempts" / "1" / "rank-0.log").read_text()
    assert "Current thread" in stacks
    assert "hpcgemma/train/loop.py" in stacks
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert run.events("relaunched")
    assert_same_training(run, reference)


def test_cancelled_then_resumed_from_an_older_checkpoint_when_the_newest_is_broken(
    terminal: Terminal, reference: Training
) -> None:
    run = terminal.submit("broken", "local")
    run.wait_for_step(50)
    run.freeze()
    terminal.call("cancel", run.name)
    run.thaw()
    wait_until("the cancelled run's end", lambda: run.status()["state"] == "CANCELLED")
    assert not run.events("continued")
    newest = max((run.folder / "checkpoints").glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    weights = sorted((newest / "state").iterdir())[0]
    weights.write_bytes(weights.read_bytes()[:-100])

    said = terminal.call("resume", run.name)
    assert f"run {run.name} goes on as job" in said.stderr
    assert run.wait_for_end()["state"] == "COMPLETED"
    [aside] = run.events("set_aside")
    assert newest.name in aside["checkpoint"]
    assert run.events("resumed")[-1]["step"] < int(newest.name.split("-")[1])
    assert list((run.folder / "checkpoints").glob("bad-*"))
    assert run.status()["time"]["stopped_s"] > 0
    assert_same_training(run, reference)


def test_a_run_goes_on_under_another_strategy_and_with_other_gpus(terminal: Terminal, reference: Training) -> None:
    run = terminal.submit("changed", "local")
    run.wait_for_step(20)
    assert (
        "it is changed only while no job has it"
        in terminal.call("resume", run.name, "--set", "strategy.name=fsdp", code=2).stderr
    )
    run.freeze()
    terminal.call("cancel", run.name)
    run.thaw()
    wait_until("the cancelled run's end", lambda: run.status()["state"] == "CANCELLED")
    refused = terminal.call("resume", run.name, "--set", "optimizer.learning_rate=1.0", code=2).stderr
    assert "optimizer.learning_rate: 0.004 -> 1.0 decides what the weights become" in refused
    refused = terminal.call("resume", run.name, "--set", "resources.gpus_per_node=3", code=2).stderr
    assert "training.global_batch 16 is not a multiple of 12" in refused

    settings = ["--set", "resources.gpus_per_node=4", "--set", "strategy.name=fsdp"]
    terminal.call("resume", run.name, *settings)
    assert run.wait_for_end()["state"] == "COMPLETED", run.logs()
    assert [event["settings"] for event in run.events("changed")] == [[settings[1], settings[3]]]
    expected = reference.losses()
    assert run.losses().keys() == expected.keys()
    for step, values in run.losses().items():
        assert values == pytest.approx(expected[step], rel=1e-3)
    assert run.losses()[21] == pytest.approx(expected[21], rel=1e-5)


def test_ctrl_c_leaves_the_run_alone_and_says_how_to_look_again(terminal: Terminal, reference: Training) -> None:
    watching = terminal.start("submit", "--profile", "local", "--recipe", str(RECIPE), "--name", "watched", "--wait")
    run = terminal.training("watched")
    wait_until("the first steps", lambda: run.step() >= 10)
    run.freeze()
    os.killpg(watching.pid, signal.SIGINT)
    _, err = watching.communicate(timeout=30)
    run.thaw()
    assert watching.returncode == 130
    assert "The run goes on without you. Look again: hpcgemma status watched" in err
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert len(run.events("started")) == 1
    assert_same_training(run, reference)


def test_run_folders_are_closed_to_others(reference: Training) -> None:
    assert reference.folder.stat().st_mode & 0o077 == 0


def test_resuming_a_finished_run_is_refused(reference: Training) -> None:
    said = reference.terminal.call("resume", reference.name, code=2)
    assert said.stderr.startswith("Error: run reference is finished")


def test_logs_show_a_rank_an_attempt_and_the_supervisor(reference: Training) -> None:
    terminal = reference.terminal
    assert terminal.call("logs", reference.name).stdout
    assert "attempt 1" in terminal.call("logs", reference.name, "--supervisor").stdout
    missing = terminal.call("logs", reference.name, "--rank", "7", code=2)
    assert "has no rank-7.log" in missing.stderr
    assert "rank-0.log, rank-1.log" in missing.stderr
    followed = terminal.call("logs", reference.name, "-f")
    assert "COMPLETED: finished at step 120" in followed.stderr


def test_ranks_do_not_outlive_a_supervisor_that_was_killed(terminal: Terminal, reference: Training) -> None:
    run = terminal.submit("orphaned", "local")
    run.wait_for_step(20)
    run.freeze()
    ranks = run.rank_pids()
    os.kill(int(run.job_id), signal.SIGSTOP)  # submitit's controller, so that it does not see its task end
    os.kill(supervisor_pid(run), signal.SIGKILL)
    run.thaw()
    wait_until("the ranks' end", lambda: not run.rank_pids())
    assert ranks
    os.kill(int(run.job_id), signal.SIGCONT)
    wait_until("the run to be seen as ended", lambda: run.status()["state"] == "INTERRUPTED")
    terminal.call("resume", run.name)
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert_same_training(run, reference)


def test_two_terminals_that_resume_at_once_start_one_job(terminal: Terminal, reference: Training) -> None:
    run = terminal.submit("twice", "local")
    run.wait_for_step(20)
    run.freeze()
    terminal.call("cancel", run.name)
    run.thaw()
    wait_until("the cancelled run's end", lambda: run.status()["state"] == "CANCELLED")
    both = [terminal.start("resume", run.name) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert sum("goes on as job" in each for each in said) == 1, said
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert len(run.events("submitted")) == 2
    assert_same_training(run, reference)
