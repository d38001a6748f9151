"""Starting ranks: one srun task per GPU on Slurm, one process per rank elsewhere."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hpcgemma import snapshot
from hpcgemma.plan import Plan
from hpcgemma.runs.folder import RunFolder

TRAINER = tuple(snapshot.start_command(snapshot.PACKAGE, "hpcgemma.train"))
"""The trainer out of the package that this supervisor itself was imported from."""
_KILL_AFTER_S = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class RankExit:
    """How one rank ended; `rank` is None where only the step's code is known."""

    rank: int | None
    code: int | None
    """Exit code; None where a signal ended it."""
    signal: int | None
    """Number of the signal that ended it."""

    @property
    def is_clean(self) -> bool:
        """Whether it ended by itself, with code 0."""
        return self.code == 0


class RankGroup(Protocol):
    """All ranks of one attempt."""

    def poll(self) -> list[RankExit] | None:
        """Return how the ranks ended once none is left, else None. A dead rank makes it end the others."""

    def warn(self) -> None:
        """Send the warning signal to every rank."""

    def dump_stacks(self) -> None:
        """Ask every rank to write its stacks into its log."""

    def kill(self) -> None:
        """End every rank now, and wait until none is left."""


def _end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the supervisor dies (prctl(2), PR_SET_PDEATHSIG): then the rank saves and ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _exit_of(rank: int | None, returncode: int) -> RankExit:
    if returncode < 0:
        return RankExit(rank, None, -returncode)
    return RankExit(rank, returncode, None)


class LocalRanks:
    """One process per rank on this machine.

    Args:
        plan: How many, and which signal warns.
        folder: The run folder; each rank logs into the attempt's folder.
        attempt: Number of the attempt.
        environment: What the ranks see; RANK, LOCAL_RANK and WORLD_SIZE are added.
    """

    def __init__(self, plan: Plan, folder: RunFolder, attempt: int, environment: Mapping[str, str]) -> None:
        self._signal = signal.Signals[f"SIG{plan.signal}"]
        self._stacks_signal = signal.Signals[f"SIG{plan.stacks_signal}"]
        self._processes: list[subprocess.Popen[bytes]] = []
        for rank in range(plan.world_size):
            ranked = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(plan.world_size)}
            with folder.rank_log(attempt, rank).open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        [*TRAINER, str(folder.path)],
                        env={**environment, **ranked},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        preexec_fn=_end_with_parent,
                    )
                )
        self._failed_at: float | None = None
        self._failed: dict[int, None] = {}
        """Ranks in the order in which they were seen to fail."""
        self._killed: set[int] = set()

    def poll(self) -> list[RankExit] | None:
        """See RankGroup: five seconds after the first failure the others are killed."""
        codes = [process.poll() for process in self._processes]
        self._failed |= {rank: None for rank, code in enumerate(codes) if code}
        if self._failed_at is None and any(code not in (None, 0) for code in codes):
            self._failed_at = time.monotonic()
        if self._failed_at is not None and time.monotonic() - self._failed_at > _KILL_AFTER_S:
            self._kill_living()
        if any(code is None for code in codes):
            return None
        # A rank that we killed says nothing about why the others had failed.
        order = [*self._failed, *(rank for rank, code in enumerate(codes) if not code)]
        exits = [_exit_of(rank, code) for rank in order if (code := codes[rank]) is not None]
        return [each for each in exits if each.rank not in self._killed] or exits

    def warn(self) -> None:
        """See RankGroup."""
        self._send(self._signal)

    def dump_stacks(self) -> None:
        """See RankGroup."""
        self._send(self._stacks_signal)

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def kill(self) -> None:
        """See RankGroup."""
        self._kill_living()
        for process in self._processes:
            process.wait()

    def _kill_living(self) -> None:
        for rank, process in enumerate(self._processes):
            if process.poll() is None:
                self._killed.add(rank)
                process.kill()


class SrunRanks:
    """One srun step with one task per GPU.

    srun passes USR1 and USR2 on to its tasks, but turns SIGTERM into SIGKILL for them (srun's manual, SIGNALS):
    so only these two are ever sent to it. ``--kill-on-bad-exit`` ends the step when one rank dies.

    Args:
        plan: How many, where, and which signal warns.
        folder: The run folder; each rank logs into the attempt's folder.
        attempt: Number of the attempt.
        environment: What the ranks see.
    """

    _TASK_ENDED = re.compile(r"tasks? (?P<rank>\d+)[\d,-]*: (?:Exited with exit code (?P<code>\d+)|(?P<word>[A-Z]\w+))")
    _STEP_ENDED_BY_SRUN = "Terminating StepId"

    def __init__(self, plan: Plan, folder: RunFolder, attempt: int, environment: Mapping[str, str]) -> None:
        self._signal = signal.Signals[f"SIG{plan.signal}"]
        self._stacks_signal = signal.Signals[f"SIG{plan.stacks_signal}"]
        self._log = folder.srun_log(attempt)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                srun_command(plan, folder.attempt_dir(attempt), folder.path),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Slurm signals the batch shell's process group; srun would take its SIGTERM for an order to kill.
                start_new_session=True,
            )

    def poll(self) -> list[RankExit] | None:
        """See RankGroup."""
        code = self._process.poll()
        if code is None:
            return None
        if code == 0:
            return [RankExit(None, 0, None)]
        return self._task_exits() or [_exit_of(None, code)]

    def warn(self) -> None:
        """See RankGroup."""
        if self._process.poll() is None:
            self._process.send_signal(self._signal)

    def dump_stacks(self) -> None:
        """See RankGroup."""
        if self._process.poll() is None:
            self._process.send_signal(self._stacks_signal)

    def kill(self) -> None:
        """See RankGroup: srun kills its tasks on SIGTERM, and waits for them."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _task_exits(self) -> list[RankExit]:
        # What ends after srun has begun to end the step is a consequence, not the cause.
        text = self._log.read_text(encoding="utf-8", errors="replace").partition(self._STEP_ENDED_BY_SRUN)[0]
        words = {"Killed": signal.SIGKILL, "Terminated": signal.SIGTERM, "Aborted": signal.SIGABRT}
        found = []
        for match in self._TASK_ENDED.finditer(text):
            rank = int(match["rank"])
            if match["code"]:
                found.append(RankExit(rank, int(match["code"]), None))
            else:
                found.append(RankExit(rank, None, int(words.get(match["word"], signal.SIGKILL))))
        return found


def srun_command(plan: Plan, attempt_dir: Path, run_folder: Path) -> list[str]:
    """Return the srun command of an attempt.

    ``--cpus-per-task`` is always explicit: Slurm 22.05 and 23.02 do not take it from the job (release notes). Blocks of
    ranks fill one node after the other, so that rank 0 is on the batch host and a rank's node is known by its number.
    """
    log = str(attempt_dir).replace("%", "%%") + "/rank-%t.log"
    cpus = [f"--cpus-per-task={plan.cpus_per_rank}"] if plan.cpus_per_rank else []
    return [
        "srun",
        f"--nodes={plan.nodes}",
        f"--ntasks={plan.world_size}",
        f"--ntasks-per-node={plan.ranks_per_node}",
        *cpus,
        "--distribution=block",
        "--kill-on-bad-exit=1",
        "--mpi=none",
        "--unbuffered",
        "--open-mode=append",
        f"--output={log}",
        f"--error={log}",
        *TRAINER,
        str(run_folder),
    ]


def start_ranks(
    plan: Plan, folder: RunFolder, attempt: int, *, on_slurm: bool, environment: Mapping[str, str]
) -> RankGroup:
    """Start all ranks of an attempt where the supervisor is."""
    kind = SrunRanks if on_slurm else LocalRanks
    return kind(plan, folder, attempt, environment)


def prepare(folder: RunFolder, attempt: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the one process that tokenizes the data before any rank exists."""
    with folder.prepare_log(attempt).open("ab") as log:
        return subprocess.Popen(
            [*snapshot.start_command(snapshot.PACKAGE, "hpcgemma.train.prepare"), str(folder.path)],
            env={**environment, "RANK": "0", "WORLD_SIZE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def own_environment() -> dict[str, str]:
    """Return this process's environment for its children."""
    return dict(os.environ)
