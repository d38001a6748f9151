"""Kill whole runs at random moments, and let them go on to their end.

Each trial is a run of one or two ranks that is killed once to three times, then resumed until it has finished. Half of
the kills come at a moment drawn evenly over the life of an uninterrupted run, the others soon after a phase began that
was drawn: loading, rehearsing, training, evaluating, saving, answering, finishing. A trial fails where the run cannot
be resumed, or where a loss, a held-out loss or the final weights are not, bit by bit, those of the run that nothing
interrupted.

Run as ``python -m tests.faults.kill_runs --trials 200 --folder FOLDER``.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.trials import Trials, arguments
from tests.train.forking import Forker
from tests.train.launch import Run, assert_same

CHANGES = {
    "training.max_steps": 12,
    "checkpoint.every_steps": 2,
    "evaluation.every_steps": 5,
    "evaluation.generation": {"rows": 2, "max_new_tokens": 4, "every_steps": 6},
}
PHASES = ("loading", "rehearsing", "training", "evaluating", "saving", "answering", "finishing")
PATIENCE_S = 120.0
PEERS_S = 5.0
"""What the supervisor gives the others after the first failure."""


class Bench:
    """An uninterrupted run of each number of ranks, and what ranks are forked from.

    Args:
        folder: Where runs are kept.
        forker: What ranks are forked from.
    """

    def __init__(self, folder: Path, forker: Forker) -> None:
        self.folder, self.forker = folder, forker
        self._references: dict[int, tuple[Run, float]] = {}

    def reference(self, ranks: int) -> tuple[Run, float]:
        """Return the uninterrupted run, and the seconds it took."""
        if ranks not in self._references:
            run = self.new_run(f"reference-{ranks}")
            began = time.monotonic()
            assert run.train(ranks)["outcome"] == "finished", run.log()
            self._references[ranks] = run, time.monotonic() - began
        return self._references[ranks]

    def new_run(self, name: str, *, like: Run | None = None) -> Run:
        """Return a new run, with the prepared data of another."""
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        run = Run(path, CHANGES)
        run.forker = self.forker
        if like is not None:
            (path / "prepared").symlink_to(like.folder.prepared_dir)
        else:
            run.prepare()
        return run


def main() -> None:
    """Make the trials that are left, and print what came of all."""
    options = arguments(__doc__, trials=200)
    trials = Trials(options.folder / "kill_runs.jsonl", options.trials)
    left = list(trials.left())
    if left:
        bench = Bench(options.folder / "killed", Forker())
        for trial in left:
            trials.note(trial, kill(bench, f"killed-{trial}", random.Random(f"{options.seed}/{trial}")))
        bench.forker.end()
    code = trials.summarize("runs killed and resumed", by="ranks")
    kills = [each for outcome in trials.outcomes().values() for each in outcome["kills"]]
    print(f"{len(kills)} kills, by what rank 0 was doing:\n| phase | kills |\n|---|---:|")
    for phase in sorted(set(kills)):
        print(f"| {phase} | {kills.count(phase)} |")
    sys.exit(code)


def kill(bench: Bench, name: str, chance: random.Random) -> dict[str, Any]:
    """Kill a run once or more, let it finish, and return what happened."""
    ranks = chance.choice((1, 2))
    reference, life_s = bench.reference(ranks)
    run = bench.new_run(name, like=reference)
    kills = []
    for _ in range(chance.randint(1, 3)):
        run.folder.heartbeat_file(0).unlink(missing_ok=True)
        run.fork(ranks)
        _wait_for_the_moment(run, chance, life_s)
        phase = _phase(run)
        victims = run.ranks if chance.random() < 0.7 else [chance.choice(run.ranks)]
        for rank in victims:  # of two ranks sometimes one alone, whose peer the supervisor would soon end
            rank.kill()
        end_peers(run)
        codes = run.wait()
        if all(code == 0 for code in codes):
            break  # it had ended by then
        kills.append(phase)
    problem = _finish(run, reference, ranks)
    if problem is None:
        shutil.rmtree(run.folder.path)
    return {"failed": problem is not None, "ranks": ranks, "kills": kills, "problem": problem}


def end_peers(run: Run) -> None:
    """Wait for the ranks' end, and after the first failure end the others as the supervisor does.

    One may wait for a peer that a signal met before it could listen.
    """
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        codes = [rank.poll() for rank in run.ranks]
        if any(codes) or None not in codes:
            break
        time.sleep(0.01)
    for rank in run.ranks:
        try:
            rank.wait(PEERS_S)
        except subprocess.TimeoutExpired:
            rank.kill()


def _finish(run: Run, reference: Run, ranks: int) -> str | None:
    """Let a run go on to its end, and return what is wrong with it, or None."""
    try:
        outcome = run.train(ranks)
        if outcome["outcome"] != "finished":
            return f"it did not finish: {outcome}"
        if damaged := sorted(each.name for each in run.folder.checkpoints_dir.glob("bad-*")):
            return f"damaged checkpoints were left: {damaged}"
        assert_same(run, reference)
    except AssertionError as error:
        return f"it is not the same: {error}"[:2000]
    return None


def _wait_for_the_moment(run: Run, chance: random.Random, life_s: float) -> None:
    """Wait until the moment at which a run is to be killed, or until it has ended."""
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0, life_s))
        return
    wanted, count = chance.choice(PHASES), chance.randint(1, 3)
    deadline, before = time.monotonic() + PATIENCE_S, ""
    while time.monotonic() < deadline and run.is_running():
        phase = _phase(run)
        count -= phase == wanted and before != wanted
        before = phase
        if not count:
            break
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))


def _phase(run: Run) -> str:
    """Return what rank 0 says it is doing."""
    try:
        beat = json.loads(run.folder.heartbeat_file(0).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "starting"
    return str(beat["phase"])


if __name__ == "__main__":
    main()
