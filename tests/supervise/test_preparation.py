"""The watch over a real preparation: one that is blocked, and one that waits for another job's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from hpcgemma.processes import cpu_seconds
from hpcgemma.runs.folder import RunFolder
from hpcgemma.supervise import launchers
from hpcgemma.supervise.endings import EndingKind, preparation_hang_ending
from hpcgemma.supervise.hang import Hang
from hpcgemma.supervise.preparation import Preparation
from tests.scenario import wait_until
from tests.test_plan import plan_of

SILENT_S = 2.0
RECIPE = {
    "name": "rows",
    "description": "Rows alone",
    "model": {"config": {"model_type": "gemma2"}},
    "tokenizer": {"train_vocab_size": 400},
    "data": {"generator": {"train_rows": 4000, "eval_rows": 7}, "format": "svg_caption"},
}


def new_folder(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.heartbeat_dir.mkdir(parents=True)
    folder.attempt_dir(1).mkdir(parents=True)
    return folder


def preparation_in(folder: RunFolder) -> Preparation:
    plan = plan_of(settings=(f"watch.elsewhere_s={SILENT_S}",))
    environment = launchers.own_environment() | {"HPCGEMMA_STACKS_SIGNAL": plan.stacks_signal}
    return Preparation(plan, folder, 1, environment)


def phase_of(folder: RunFolder) -> str:
    try:
        return str(json.loads(folder.prepare_heartbeat_file.read_text(encoding="utf-8"))["phase"])
    except OSError:
        return ""


def hang_of(preparation: Preparation, for_s: float) -> Hang | None:
    """Look until it hangs, at most so long."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        if (hang := preparation.look()) is not None:
            return hang
        time.sleep(0.02)
    return None


def test_one_that_is_blocked_in_a_read_hangs_writes_its_stacks_and_is_ended(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    os.mkfifo(folder.run_file)  # which nobody writes
    preparation = preparation_in(folder)
    try:
        wait_until("its first sign of life", lambda: phase_of(folder) == "preparing")
        hang = hang_of(preparation, for_s=60)
        assert hang is not None
        assert (hang.phase, hang.silent_s >= SILENT_S) == ("preparing", True)
        preparation.write_stacks()
        log = folder.prepare_log(1).read_text()
        assert "most recent call first" in log
        assert "in read_run" in log
    finally:
        preparation.end()
    assert preparation.poll() == -signal.SIGTERM
    assert preparation.look() is None


def test_one_that_waits_for_another_jobs_preparation_lives(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path / "runs" / name) for name in ("first", "second")]
    for folder in folders:
        folder.run_file.write_text(yaml.safe_dump({"run_id": folder.path.name, "recipe": RECIPE}), encoding="utf-8")
    first = launchers.prepare(folders[0], 1, launchers.own_environment())
    try:
        wait_until("its lock", lambda: list(tmp_path.glob("runs/.prepared/*.lock")))
        first.send_signal(signal.SIGSTOP)
        second = preparation_in(folders[1])
        try:
            wait_until("the other to wait", lambda: phase_of(folders[1]) == "waiting")
            assert hang_of(second, for_s=2.5 * SILENT_S) is None
            first.send_signal(signal.SIGCONT)
            assert first.wait(timeout=60) == 0
            wait_until("the end of the other", lambda: second.poll() is not None)
            assert second.poll() == 0, folders[1].prepare_log(1).read_text()
        finally:
            second.end()
    finally:
        first.kill()
        first.wait()


def test_what_a_process_of_its_own_computes_is_its_own_cpu_time() -> None:
    burn = "while True: pass"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    process = subprocess.Popen([sys.executable, "-c", start], start_new_session=True)
    try:
        wait_until("two seconds of CPU time", lambda: cpu_seconds(process.pid) > 2)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert cpu_seconds(process.pid) == 0.0


def test_its_ending_names_the_log_and_what_to_do() -> None:
    hang = Hang(phase="preparing", step=0, silent_s=1800.4, behind=0)
    ending = preparation_hang_ending(hang, Path("/runs/r/attempts/1/prepare.log"))
    assert (ending.kind, ending.rank, ending.step) == (EndingKind.HUNG, None, None)
    assert ending.sentence == "the preparation of the data hangs: no sign of life for 1800 s"
    assert ending.hint.startswith("/runs/r/attempts/1/prepare.log ends with its stacks")
    assert "--set watch.elsewhere_s=" in ending.hint
