"""The hpcgemma that was submitted is the one that runs, whatever becomes of it meanwhile; and what else may change."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from hpcgemma.snapshot import code_hash
from tests.scenario import Terminal, Training, assert_same_training, wait_until

from .test_scenarios import supervisor_pid

ROOT = Path(__file__).parent.parent.parent


class Developer(Terminal):
    """A terminal that runs hpcgemma out of a working tree of its own, to be edited."""

    def __init__(self, base: Terminal, tree: Path) -> None:
        super().__init__(base.folder, base.environment)
        self.tree = tree
        for name in ("hpcgemma", "job_templates", "cluster_profiles"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", str(self.tree / "hpcgemma" / "start.py"), "hpcgemma", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def edit(self, module: str, line: str) -> None:
        """Add a line to the end of a file of the package."""
        with (self.tree / "hpcgemma" / module).open("a") as file:
            file.write(f"\n{line}\n")


def cancel(run: Training) -> int:
    """Cancel a run where it stands, and return the step of its newest checkpoint."""
    run.freeze()
    run.terminal.call("cancel", run.name)
    run.thaw()
    wait_until("the cancelled run's end", lambda: run.status()["state"] == "CANCELLED")
    return int(run.events("saved")[-1]["step"])


def test_what_was_submitted_is_what_runs_after_a_requeue_however_the_working_tree_is_edited(
    terminal: Terminal, reference: Training, tmp_path: Path
) -> None:
    developer = Developer(terminal, tmp_path / "tree")
    run = developer.submit("edited", "local")
    run.wait_for_step(30)
    run.freeze()
    for module in ("supervise/attempt.py", "train/loop.py", "train/prepare.py"):
        developer.edit(module, "raise RuntimeError('the edited working tree is imported')")
    os.kill(supervisor_pid(run), signal.SIGUSR2)
    run.wait_for_event("warned")
    run.thaw()
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert run.events("continued")
    [code] = {event["code"] for event in run.events("started")}
    assert code == code_hash(run.folder / "code" / "hpcgemma") != code_hash(developer.tree / "hpcgemma")
    assert yaml.safe_load((run.folder / "run.yaml").read_text())["versions"]["code"] == code
    assert_same_training(run, reference)
    modes = {path.stat().st_mode & 0o077 for path in [run.folder / "code", *(run.folder / "code").rglob("*")]}
    assert modes - {0o055, 0o044} == {0}, "only what Python itself caches there may have other modes"


def test_a_resume_says_that_hpcgemma_has_changed_and_takes_the_new_one_only_when_it_is_told_to(
    terminal: Terminal, reference: Training, tmp_path: Path
) -> None:
    developer = Developer(terminal, tmp_path / "tree")
    run = developer.submit("developed", "local")
    run.wait_for_step(20)
    cancel(run)
    developer.edit("train/rank.py", "print('this is the new code', flush=True)")
    (run.folder / "code").rename(run.folder / "away")
    refused = developer.call("resume", run.name, code=2).stderr
    assert f"the copy of hpcgemma with which run developed began is gone from {run.folder}/code" in refused
    (run.folder / "away").rename(run.folder / "code")

    said = developer.call("resume", run.name).stderr
    assert re.search(
        r"hpcgemma has changed since the run was submitted \([0-9a-f]{12} -> [0-9a-f]{12}: train/rank.py\); the run "
        r"goes on with its own copy, unless: --allow-change code\n",
        said,
    )
    run.wait_for_event("resumed")
    run.wait_for_step(max(run.losses()) + 5)
    step = cancel(run)

    said = developer.call("resume", run.name, "--allow-change", "code").stderr
    assert re.search(rf"changed since step {step} was saved: hpcgemma's code: [0-9a-f]{{12}} -> [0-9a-f]{{12}}\n", said)
    assert run.wait_for_end()["state"] == "COMPLETED"
    logs = [path.read_text() for path in sorted(run.folder.glob("attempts/*/rank-0.log"))]
    assert ["this is the new code" in log for log in logs] == [False, False, True]
    assert "changed since step-" in logs[2]
    [kept] = run.folder.glob("code-before-*")
    assert code_hash(kept / "hpcgemma") == run.events("started")[0]["code"]
    assert_same_training(run, reference)


def test_the_copy_in_a_run_folder_is_a_whole_hpcgemma(reference: Training) -> None:
    start = reference.folder / "code" / "hpcgemma" / "start.py"
    arguments = ("submit", "--profile", "local", "--recipe", "svg_captions_tiny", "--dry-run")
    done = subprocess.run(
        [sys.executable, "-P", start, "hpcgemma", *arguments], capture_output=True, text=True, check=True
    )
    assert "submitit.core._submit" in done.stdout


def test_another_version_of_a_library_that_decides_the_result_is_refused_until_it_is_allowed(
    terminal: Terminal, reference: Training, tmp_path: Path
) -> None:
    run = terminal.submit("upgraded", "local")
    run.wait_for_step(20)
    step = cancel(run)
    for name in ("accelerate", "safetensors"):
        metadata = tmp_path / f"{name}-99.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
    upgraded = Terminal(terminal.folder, {**terminal.environment, "PYTHONPATH": str(tmp_path)})
    refused = upgraded.call("resume", run.name, code=2).stderr
    assert re.fullmatch(
        rf"changed since step {step} was saved: accelerate: [\d.]+ -> 99.0\n"
        rf"changed since step {step} was saved: safetensors: [\d.]+ -> 99.0 \(does not change the result\)\n"
        rf"Error: what decides the result has changed since step {step} was saved: accelerate: [\d.]+ -> 99.0\n"
        rf"Try:   restore it, or accept that the result changes: hpcgemma resume upgraded --allow-change libraries\n",
        refused,
    ), refused
    assert len(run.events("submitted")) == 1
    shutil.rmtree(run.folder / "code")  # the same hpcgemma is copied again
    upgraded.call("resume", run.name, "--allow-change", "libraries")
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert "changed since step-" in (run.folder / "attempts" / "2" / "rank-0.log").read_text()
    assert_same_training(run, reference)


def test_a_resume_under_another_learning_rate_is_refused_until_it_is_allowed(terminal: Terminal) -> None:
    run = terminal.submit("hotter", "local")
    run.wait_for_step(20)
    cancel(run)
    hotter = ("--set", "optimizer.learning_rate=0.5")
    refused = terminal.call("resume", run.name, *hotter, code=2).stderr
    assert re.search(r"optimizer.learning_rate: [\d.]+ -> 0.5 decides what the weights become", refused)
    assert "add --allow-change recipe if that is meant" in refused
    fixed = terminal.call("resume", run.name, "--set", "model.config.num_hidden_layers=3", code=2).stderr
    assert "model.config.num_hidden_layers decides what the checkpoints of run hotter are made of" in fixed
    terminal.call("resume", run.name, *hotter, "--allow-change", "recipe")
    assert run.wait_for_end()["state"] == "COMPLETED"
    first = min(line["step"] for line in run.metrics() if line["attempt"] == 2)
    assert {line["learning_rate"] > 0.1 for line in run.metrics() if line["step"] == first} == {True}
