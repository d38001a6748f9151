"""One attempt: prepare the data, start the ranks, relay warnings, wait for the end."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

from hpcgemma import snapshot
from hpcgemma.plan import Plan
from hpcgemma.runs.folder import RunFolder
from hpcgemma.supervise import launchers
from hpcgemma.supervise.allocation import Allocation, free_port, rank_threads
from hpcgemma.supervise.endings import Ending, classify, save_problem
from hpcgemma.supervise.launchers import RankExit, RankGroup
from hpcgemma.supervise.signals import WarningFlags

POLL_S = 0.2
"""Seconds between looks at the ranks."""


class Attempt:
    """One launch of all ranks.

    Args:
        plan: What runs.
        folder: The run folder.
        allocation: Where it runs.
        number: Number of the attempt, from 1.
        flags: The signals that this process receives.
        on_warning: Called once, when a warning was passed on to the ranks.
        on_watch: Called at each look at the processes; what it raises ends them.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        allocation: Allocation,
        number: int,
        flags: WarningFlags,
        on_warning: Callable[[], None],
        on_watch: Callable[[], None],
    ) -> None:
        self.plan, self.folder, self.allocation = plan, folder, allocation
        self.number, self.flags, self._on_warning = number, flags, on_warning
        self._on_watch = on_watch
        self._relayed = False

    def run(self) -> Ending:
        """Run the attempt to its end and return why it ended."""
        self.folder.record("began", attempt=self.number, job_id=self.allocation.job_id)
        environment = self._environment()
        preparation = self._prepare(environment)
        if preparation is not None:
            return preparation
        self.folder.record(
            "started",
            attempt=self.number,
            job_id=self.allocation.job_id,
            nodes=self.plan.nodes,
            node_list=self.allocation.node_list,
            ranks=self.plan.world_size,
            code=snapshot.code_hash(),
        )
        ranks = launchers.start_ranks(
            self.plan,
            self.folder,
            self.number,
            on_slurm=self.allocation.on_slurm,
            environment=environment,
        )
        try:
            exits = self._watch(ranks)
        except BaseException:
            ranks.kill()  # never leave ranks behind that nobody watches
            raise
        return classify(
            exits,
            self._outcome(),
            warned=self.flags.warned is not None,
            save_problem=save_problem(self.folder.events()),
        )

    def _environment(self) -> dict[str, str]:
        environment = launchers.own_environment()
        threads = rank_threads(self.plan.ranks_per_node, self.plan.cpus_per_rank)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        return environment | {
            "MASTER_ADDR": self.allocation.host if self.plan.nodes > 1 else "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "HPCGEMMA_ATTEMPT": str(self.number),
            "HPCGEMMA_DEVICE": self.plan.device,
            "HPCGEMMA_SIGNAL": self.plan.signal,
            "HPCGEMMA_INTERRUPTION_EVERY_H": str(self.plan.interruption_every_h),
        }

    def _prepare(self, environment: Mapping[str, str]) -> Ending | None:
        """Tokenize before any rank exists; None when that is done."""
        process = launchers.prepare(self.folder, self.number, environment)
        try:
            while process.poll() is None:
                if self.flags.warned is not None:
                    break
                self._on_watch()
                time.sleep(POLL_S)
        finally:
            _end(process)
        code = process.returncode
        if code == 0:
            return None
        exit_ = RankExit(None, code, None) if code >= 0 else RankExit(None, None, -code)
        return classify([exit_], self._outcome(), warned=self.flags.warned is not None)

    def _watch(self, ranks: RankGroup) -> list[RankExit]:
        while (exits := ranks.poll()) is None:
            if self.flags.warned is not None and not self._relayed:
                self._relayed = True
                ranks.warn()
                self._on_warning()
            self._on_watch()
            if self._is_too_late():
                ranks.kill()
            time.sleep(POLL_S)
        return exits

    def _is_too_late(self) -> bool:
        """Whether the ranks must be ended now, so that there is still time to go on."""
        return self.flags.warned_at is not None and (
            time.monotonic() - self.flags.warned_at > max(self.plan.signal_lead_s - 15, self.plan.signal_lead_s / 2)
        )

    def _outcome(self) -> dict[str, Any] | None:
        try:
            outcome = json.loads(self.folder.outcome_file(self.number).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return outcome if isinstance(outcome, dict) else None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
