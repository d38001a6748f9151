"""Looking after ranks that live: reads their heartbeats, and asks those that hang for their stacks."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

from hpcgemma.plan import Plan
from hpcgemma.runs.folder import RunFolder
from hpcgemma.supervise import stacks
from hpcgemma.supervise.hang import Beat, Hang, HangWatch, between_looks_s
from hpcgemma.supervise.launchers import RankGroup
from hpcgemma.supervise.straggler import Straggler, StragglerWatch

STACKS_WAIT_S = 4.0
"""For stacks. A stopped process never writes one."""
_BETWEEN_READS_S = 0.2


class RankWatch:
    """The heartbeats of an attempt's ranks; made before they start.

    Args:
        plan: How many ranks there are, and how long they may be silent.
        folder: The run folder.
        attempt: Number of the attempt.
    """

    def __init__(self, plan: Plan, folder: RunFolder, attempt: int) -> None:
        self._folder, self._attempt, self._world_size = folder, attempt, plan.world_size
        self._left = self._beats()
        """What the attempt before has left, which says nothing of this one."""
        self._watch = HangWatch(self._left, training_s=plan.silent_training_s, elsewhere_s=plan.silent_elsewhere_s)
        self._slow_steps = StragglerWatch("its part of a step")
        self._slow_rows = StragglerWatch("reading the rows of a step")
        self.stragglers: list[Straggler] = []
        """Ranks that the last look found to be slow."""
        self._between_looks_s = between_looks_s(plan.silent_training_s, plan.silent_elsewhere_s)
        self._next_look = 0.0

    def look(self) -> Hang | None:
        """Look at the heartbeats, seldom enough to cost a file system nothing, and return whether the ranks hang."""
        now = time.monotonic()
        self.stragglers = []
        if now < self._next_look:
            return None
        self._next_look = now + self._between_looks_s
        beats = self._beats()
        new = {rank: beat for rank, beat in beats.items() if beat != self._left.get(rank)}
        training = {rank: beat for rank, beat in new.items() if beat.phase == "training"}
        own_s = {rank: beat.own_s for rank, beat in training.items() if beat.own_s is not None}
        rows_s = {rank: beat.rows_s for rank, beat in training.items() if beat.rows_s is not None}
        self.stragglers = self._slow_steps.look(own_s, now) + self._slow_rows.look(rows_s, now)
        hang = self._watch.look(beats, now)
        if hang is not None and not self._can_heartbeats_be_written():
            self._watch.forgive()  # on a full disk ranks train on, unseen
            return None
        return hang

    def ask_for_stacks(self, ranks: RankGroup, hang: Hang) -> Hang:
        """Let every rank write its stacks into its log, and return the hang with the rank that is waited for."""
        logs = [self._folder.rank_log(self._attempt, rank) for rank in range(self._world_size)]
        ends = [log.stat().st_size if log.exists() else 0 for log in logs]
        ranks.dump_stacks()
        deadline = time.monotonic() + STACKS_WAIT_S
        answers: dict[int, str] = {}
        while True:
            time.sleep(_BETWEEN_READS_S)
            before, answers = answers, {}
            for rank, (log, end) in enumerate(zip(logs, ends, strict=True)):
                answers[rank] = text_from(log, end)
            whole = answers == before and all(map(stacks.has_stack, answers.values()))
            if whole or time.monotonic() > deadline:
                break
        suspect = stacks.suspect(answers)
        return hang if suspect is None else replace(hang, behind=suspect)

    def _beats(self) -> dict[int, Beat]:
        found = {}
        for rank in range(self._world_size):
            try:
                text = self._folder.heartbeat_file(rank).read_text(encoding="utf-8")
                facts = json.loads(text)
                found[rank] = Beat(
                    text, str(facts["phase"]), int(facts["step"]), facts.get("own_s"), facts.get("rows_s")
                )
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def _can_heartbeats_be_written(self) -> bool:
        probe = self._folder.heartbeat_dir / ".probe"
        try:
            probe.write_text("as long as a heartbeat, which is all that matters of it" * 2, encoding="utf-8")
            probe.unlink()
        except OSError:
            return False
        return True


def text_from(log: Path, start: int) -> str:
    """Return what a log holds from a byte on; empty where it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(start)
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
