"""Runs as a user starts them, and what two runs are compared by."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcgemma.files import read_json_lines
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.state import current_job_id
from tests.guard import Guard

RECIPE = Path(__file__).parent / "recipes" / "captions_test.yaml"
TIMEOUT_S = 240.0
_POLL_S = 0.1


def wait_until(what: str, condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """Return the first true value of a condition; fail with its description after the time."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain: {what}")
        time.sleep(_POLL_S)
    return value


@dataclass
class Terminal:
    """A user's terminal: a working folder and an environment, in which hpcgemma is called."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in a session of its own, so that a signal can be sent as a terminal sends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "hpcgemma", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def call(self, *arguments: str, code: int = 0, timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and check its exit code."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Return what a command prints with ``--json``."""
        return json.loads(self.call(*arguments, "--json", timeout_s=timeout_s).stdout)

    def submit(self, name: str, profile: str, *more: str) -> Training:
        """Submit the test recipe."""
        said = self.json("submit", "--profile", profile, "--recipe", str(RECIPE), "--name", name, *more)
        return Training(self, said["name"], Path(said["folder"]), said["job_id"])

    def training(self, name: str) -> Training:
        """Return a run of this terminal by its name; its job id is that of its first submission."""
        run = Training(self, name, Path(self.environment["HPCGEMMA_RUNS_DIR"]) / name, "")
        return replace(run, job_id=next((event["job_id"] for event in run.events("submitted")), ""))


def terminal_of(root: Path) -> Terminal:
    """Return the terminal whose working folder and runs are in a folder."""
    places = {name: str(root / name) for name in ("config", "data", "runs")}
    return Terminal(root / "work", {f"HPCGEMMA_{name.upper()}_DIR": place for name, place in places.items()})


@contextlib.contextmanager
def opened_terminal(root: Path) -> Iterator[Terminal]:
    """Open a terminal in an empty folder; at the end whatever its runs left is ended by its own id."""
    terminal = terminal_of(root)
    terminal.folder.mkdir(exist_ok=True)
    guard = Guard("HPCGEMMA_DATA_DIR", terminal.environment["HPCGEMMA_DATA_DIR"])
    try:
        yield terminal
    finally:
        for folder in (root / "runs").glob("*"):
            job_id = current_job_id(RunFolder(folder).events())
            if job_id is not None and _is_of(terminal, job_id):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(job_id), signal.SIGKILL)
        guard.dismiss()


def _is_of(terminal: Terminal, pid: str) -> bool:
    """Whether a process was started from a terminal; a job of Slurm may have any process's number."""
    mark = f"HPCGEMMA_DATA_DIR={terminal.environment['HPCGEMMA_DATA_DIR']}"
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


@dataclass
class Training:
    """One run, seen from its folder."""

    terminal: Terminal
    name: str
    folder: Path
    job_id: str

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the events, all or of one kind."""
        return [event for event in read_json_lines(self.folder / "events.jsonl") if kind in (None, event["event"])]

    def step(self) -> int:
        """Return the newest logged step."""
        return max((line["step"] for line in self.metrics()), default=0)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged steps, without the evaluations."""
        return [line for line in read_json_lines(self.folder / "metrics.jsonl") if "loss" in line]

    def losses(self) -> dict[int, tuple[float, float]]:
        """Return loss and gradient norm by step; of a step that was made twice, the later."""
        return {line["step"]: (line["loss"], line["grad_norm"]) for line in self.metrics()}

    def final_digest(self) -> str:
        """Return the SHA-256 of the final weights."""
        return hashlib.sha256((self.folder / "final" / "model.safetensors").read_bytes()).hexdigest()

    def status(self) -> dict[str, Any]:
        """Return what `hpcgemma status` says."""
        said: dict[str, Any] = self.terminal.json("status", self.name)
        return said

    def wait_for_step(self, step: int) -> None:
        """Wait until a step is logged."""
        self._wait(f"step {step}", lambda: self.step() >= step)

    def wait_for_event(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Wait until so many events of a kind are written, and return the last of them."""
        self._wait(f"{count} x {kind}", lambda: len(self.events(kind)) >= count)
        return self.events(kind)[count - 1]

    def wait_for_end(self) -> dict[str, Any]:
        """Wait until the run ends for good, and return its status."""
        self._wait("the end", self.is_over)
        return self.status()

    def is_over(self) -> bool:
        """Whether the run has finished or failed since it was last submitted or resumed."""
        kinds = [event["event"] for event in self.events()]
        return not {"finished", "failed"}.isdisjoint(kinds[len(kinds) - kinds[::-1].index("submitted") :])

    def rank_pids(self) -> list[int]:
        """Return the processes of the ranks that live now, by rank."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().split(b"\0")
                if b"hpcgemma.train" in words and str(self.folder).encode() in words:
                    variables = dict(
                        part.split(b"=", 1) for part in (path / "environ").read_bytes().split(b"\0") if b"=" in part
                    )
                    rank = variables.get(b"RANK") or variables.get(b"SLURM_PROCID")
                    if rank is not None and b"srun" not in words[0]:
                        found[int(rank)] = int(path.name)
        return [found[rank] for rank in sorted(found)]

    def freeze(self) -> None:
        """Stop the ranks where they are, so that what is to interrupt them comes in time on any machine."""
        for pid in self.rank_pids():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let frozen ranks go on."""
        for pid in self.rank_pids():
            os.kill(pid, signal.SIGCONT)

    def _wait(self, what: str, condition: Callable[[], Any]) -> None:
        try:
            wait_until(what, lambda: condition() or self.is_over())
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None
        if not condition():
            raise AssertionError(f"the run ended before {what}\n{self.logs()}")

    def logs(self) -> str:
        """Return the ends of all logs, for a failing test's message."""
        parts = [str(event) for event in self.events()]
        for path in sorted([*self.folder.glob("attempts/*/*.log"), *self.folder.glob("submitit/*.*")]):
            if path.suffix in (".log", ".out", ".err"):
                parts.append(f"--- {path.relative_to(self.folder)}\n{path.read_text(errors='replace')[-3000:]}")
        return "\n".join(parts)


def assert_same_training(run: Training, reference: Training) -> None:
    """Final weights and every logged loss are bitwise those of the reference."""
    assert run.losses() == reference.losses()
    assert run.final_digest() == reference.final_digest()
