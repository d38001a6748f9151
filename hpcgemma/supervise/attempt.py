"""One attempt: look at the nodes, prepare the data, start the ranks, relay warnings, wait for the end."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcgemma import snapshot
from hpcgemma.plan import Plan
from hpcgemma.processes import process_age_s
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.lead import time_to_save_s
from hpcgemma.supervise import launchers
from hpcgemma.supervise.allocation import Allocation, free_port, rank_threads
from hpcgemma.supervise.blame import met_faults
from hpcgemma.supervise.endings import Ending, classify, hang_ending, preparation_hang_ending, save_problem, sick_ending
from hpcgemma.supervise.hang import Hang
from hpcgemma.supervise.health import Health, HealthCheck
from hpcgemma.supervise.launchers import RankExit, RankGroup
from hpcgemma.supervise.preparation import Preparation
from hpcgemma.supervise.rank_watch import RankWatch
from hpcgemma.supervise.signals import WarningFlags

POLL_S = 0.2
"""Seconds between looks at the ranks."""
_LOG_END_BYTES = 16384
"""Of a log, in which a failure is looked for."""


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
        age_s = round(process_age_s(), 3)
        self.folder.record("began", attempt=self.number, job_id=self.allocation.job_id, age_s=age_s)
        environment = self._environment()
        unfit = self._make_ready(environment)
        if unfit is not None:
            return unfit
        self.folder.record(
            "started",
            attempt=self.number,
            job_id=self.allocation.job_id,
            nodes=self.plan.nodes,
            node_list=self.allocation.node_list,
            ranks=self.plan.world_size,
            code=snapshot.code_hash(),
        )
        watch = RankWatch(self.plan, self.folder, self.number)
        ranks = launchers.start_ranks(
            self.plan,
            self.folder,
            self.number,
            on_slurm=self.allocation.on_slurm,
            environment=environment,
        )
        try:
            end = self._watch(ranks, watch)
        except BaseException:
            ranks.kill()  # never leave ranks behind that nobody watches
            raise
        if isinstance(end, Hang):
            return hang_ending(end)
        return classify(
            end,
            self._outcome(),
            warned=self.flags.warned is not None,
            save_problem=save_problem(self.folder.events()),
            log=self._log_of_failure(end),
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
            "HPCGEMMA_STACKS_SIGNAL": self.plan.stacks_signal,
            "HPCGEMMA_INTERRUPTION_EVERY_H": str(self.plan.interruption_every_h),
            "HPCGEMMA_NOTICE_S": str(time_to_save_s(self.plan.signal_lead_s)),
        }

    def _make_ready(self, environment: Mapping[str, str]) -> Ending | None:
        """Look at the nodes and tokenize, both at once, before any rank exists; None when the ranks may start."""
        check = HealthCheck(self.plan, self.folder, self.number, self.allocation, environment)
        preparation = Preparation(self.plan, self.folder, self.number, environment)
        health: Health | None = None
        try:
            while self.flags.warned is None and (preparation.poll() is None or health is None):
                if health is None and check.is_over:
                    health = self._note_health(check)
                    if health.faults:
                        return sick_ending(health.faults)
                if (hang := preparation.look()) is not None:
                    preparation.write_stacks()
                    return preparation_hang_ending(hang, self.folder.prepare_log(self.number))
                self._on_watch()
                time.sleep(POLL_S)
        finally:
            check.end()
            preparation.end()
        code = preparation.poll()
        if code == 0:
            return None
        if code is None:  # the kernel holds it
            code = -signal.SIGKILL
        exit_ = RankExit(None, code, None) if code >= 0 else RankExit(None, None, -code)
        return classify([exit_], self._outcome(), warned=self.flags.warned is not None)

    def _note_health(self, check: HealthCheck) -> Health:
        health = check.result(met_faults(self.folder.events()))
        self.folder.record(
            "checked",
            attempt=self.number,
            seconds=round(health.seconds, 3),
            slowest_s=health.slowest_s,
            sick=[fault.node for fault in health.faults],
            unknown=health.unknown,
        )
        return health

    def _watch(self, ranks: RankGroup, watch: RankWatch) -> list[RankExit] | Hang:
        """Wait for the ranks' end, or end those that hang."""
        while (exits := ranks.poll()) is None:
            if self.flags.warned is not None and not self._relayed:
                self._relayed = True
                ranks.warn()
                self._on_warning()
            self._on_watch()
            if self._is_too_late():
                ranks.kill()
            hang = watch.look()
            for slow in watch.stragglers:
                self.folder.record("straggler", attempt=self.number, rank=slow.rank, sentence=slow.sentence)
            # Ranks that were warned have a deadline of their own.
            if hang is not None and self.flags.warned is None:
                hang = watch.ask_for_stacks(ranks, hang)
                ranks.kill()
                return hang
            time.sleep(POLL_S)
        return exits

    def _is_too_late(self) -> bool:
        """Whether the ranks must be ended now, so that there is still time to go on."""
        limit_s = time_to_save_s(self.plan.signal_lead_s)
        return self.flags.warned_at is not None and time.monotonic() - self.flags.warned_at > limit_s

    def _log_of_failure(self, exits: Sequence[RankExit]) -> str:
        """Return the ends of what srun and the first failing rank wrote; empty where none failed.

        Why slurmstepd killed a rank, it writes into the log of the first rank of a node, whichever that was.
        """
        failed = next((each for each in exits if not each.is_clean), None)
        if failed is None:
            return ""
        ranks = [self.folder.rank_log(self.number, rank) for rank in range(self.plan.world_size)]
        told = [_end_of(self.folder.srun_log(self.number))]
        if failed.rank is not None:
            told.append(_end_of(ranks[failed.rank]))
        if failed.signal == signal.SIGKILL and self.allocation.on_slurm:
            told += [line for log in ranks for line in _end_of(log).splitlines() if line.startswith("slurmstepd")]
        return "\n".join(told)

    def _outcome(self) -> dict[str, Any] | None:
        try:
            outcome = json.loads(self.folder.outcome_file(self.number).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return outcome if isinstance(outcome, dict) else None


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_END_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
