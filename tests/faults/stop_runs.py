"""Stop whole runs gracefully at random moments, let them go on, and count the completed steps that are lost.

``--through ranks``: ranks without a supervisor get SIGUSR2 or SIGTERM, one of them or all, up to four times a run.
``--through profile``: a run of the local profile; its supervisor gets SIGUSR2, and goes on by itself, up to four times.
A trial fails where the newest checkpoint after a stop is not of the newest completed step, or where the finished run is
not, bit by bit, the one that nothing interrupted.

Run as ``python -m tests.faults.stop_runs --trials 200 --folder FOLDER``; the trials are stops, and a run has several.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcgemma import checkpoints
from hpcgemma.files import read_json_lines
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.lock import newest_claim
from tests.faults.kill_runs import Bench, end_peers
from tests.faults.trials import Trials, arguments
from tests.scenario import Terminal, Training, assert_same_training, wait_until
from tests.train.forking import Forker
from tests.train.launch import assert_same

PATIENCE_S = 1800.0
STOPS = 4
"""Stops of a run."""


def main() -> None:
    """Make the trials that are left, and print what came of all."""
    options = arguments(__doc__, trials=200, more=_add_way)
    trials = Trials(options.folder / f"stop_{options.through}.jsonl", -(-options.trials // STOPS))
    left = list(trials.left())
    way = (Profile if options.through == "profile" else Ranks)(options.folder) if left else None
    for trial in left:
        assert way is not None
        trials.note(trial, way.stop(f"stopped-{trial}", random.Random(f"{options.seed}/{trial}")))
    if way is not None:
        way.end()
    code = trials.summarize(f"runs stopped {STOPS} times, through {options.through}", by="through")
    outcomes = trials.outcomes().values()
    stops = [each for outcome in outcomes for each in outcome["stops"]]
    print(f"{len(stops)} stops, {sum(outcome['lost'] for outcome in outcomes)} completed steps lost")
    sys.exit(code)


def _add_way(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--through", choices=("ranks", "profile"), default="profile", help="who gets the signals")


class Ranks:
    """Stops of ranks alone.

    Args:
        folder: Where runs are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._bench = Bench(folder / "stopped", Forker())

    def stop(self, name: str, chance: random.Random) -> dict[str, Any]:
        """Stop a run again and again, let it finish, and return what happened."""
        ranks = chance.choice((1, 2))
        reference, _ = self._bench.reference(ranks)
        run = self._bench.new_run(name, like=reference)
        stops: list[int] = []
        lost, problem = 0, None
        for _ in range(STOPS):
            wanted = newest_logged(run.folder) + chance.randint(0, 3)  # of 12 steps; 0: while it loads
            run.fork(ranks)
            while newest_logged(run.folder) < wanted and run.is_running():
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.1))
            number = chance.choice((signal.SIGUSR2, signal.SIGTERM))
            for rank in run.ranks if chance.random() < 0.5 else [chance.choice(run.ranks)]:
                rank.send_signal(number)
            end_peers(run)
            codes = run.wait()
            if run.folder.final_dir.exists():
                break  # it had ended by then
            stops.append(newest_step(run.folder))
            lost += newest_logged(run.folder) - stops[-1]
            if any(code > 0 for code in codes):
                problem = f"a rank ended with exit code {max(codes)}: {run.log()[-1500:]}"
        try:
            assert run.train(ranks)["outcome"] == "finished", run.log()
            assert_same(run, reference)
            shutil.rmtree(run.folder.path)
        except AssertionError as error:
            problem = f"{error}"[:2000]
        return _outcome("ranks", stops, lost, problem)

    def end(self) -> None:
        """End what ranks were forked from."""
        self._bench.forker.end()


class Profile:
    """Stops of runs of the local profile.

    Args:
        folder: Where runs are kept.
    """

    def __init__(self, folder: Path) -> None:
        root = folder / "profile"
        (root / "work").mkdir(parents=True, exist_ok=True)
        names = {"HPCGEMMA_CONFIG_DIR": "config", "HPCGEMMA_DATA_DIR": "data", "HPCGEMMA_RUNS_DIR": "runs"}
        self._terminal = Terminal(root / "work", {name: str(root / place) for name, place in names.items()})
        self._root = root
        self._reference: Training | None = None

    def reference(self) -> Training:
        """Return the run that nothing interrupts."""
        if self._reference is None:
            folder = self._root / "runs" / "reference"
            known = Training(self._terminal, "reference", folder, "")
            if not known.events("finished"):
                shutil.rmtree(folder, ignore_errors=True)
                known = self._terminal.submit("reference", "local")
                _wait(known, "its end", lambda: known.events("finished"))
            self._reference = known
        return self._reference

    def stop(self, name: str, chance: random.Random) -> dict[str, Any]:
        """Stop a run again and again, let it finish, and return what happened."""
        reference = self.reference()
        shutil.rmtree(self._root / "runs" / name, ignore_errors=True)
        run = self._terminal.submit(name, "local")
        folder = RunFolder(run.folder)
        stops: list[int] = []
        lost, problem = 0, None
        try:
            for count in range(1, STOPS + 1):
                _wait(run, "another attempt", lambda: len(run.events("started")) >= count)  # noqa: B023 - waited for
                wanted = newest_logged(folder) + chance.randint(0, 20)  # of 120
                _wait(run, f"step {wanted}", lambda: newest_logged(folder) >= wanted)  # noqa: B023
                time.sleep(chance.uniform(0, 0.2))
                claim = newest_claim(folder)
                assert claim is not None
                assert claim.holder is not None
                _send(claim.holder.pid, signal.SIGUSR2)
                _wait(run, "the end of the attempt", lambda: len(run.events("ended")) >= count)  # noqa: B023
                ended = run.events("ended")[count - 1]
                saved = [event["step"] for event in run.events("saved") if event["time"] <= ended["time"]]
                stops.append(max(saved, default=0))  # also where the signal met ranks that had not begun yet
                lost += newest_logged(folder, ended["time"]) - stops[-1]
            _wait(run, "its end", lambda: run.events("finished"))
            assert_same_training(run, reference)
            shutil.rmtree(run.folder)
        except AssertionError as error:
            problem = f"{error}"[:2000]
        return _outcome("profile", stops, lost, problem)

    def end(self) -> None:
        """Nothing is left running."""


def _wait(run: Training, what: str, condition: Callable[[], Any]) -> None:
    wait_until(what, lambda: condition() or run.events("failed"), PATIENCE_S)
    assert condition(), f"the run failed before {what}: {run.logs()}"


def newest_logged(folder: RunFolder, before: float = float("inf")) -> int:
    """Return the newest completed step, or that of a time."""
    lines = [line for line in read_json_lines(folder.metrics_file) if "loss" in line and line["time"] <= before]
    return max((line["step"] for line in lines), default=0)


def newest_step(folder: RunFolder) -> int:
    """Return the step from which a run would go on."""
    newest = checkpoints.latest_checkpoint(folder.checkpoints_dir)
    return newest.step if newest else 0


def _outcome(through: str, stops: list[int], lost: int, problem: str | None) -> dict[str, Any]:
    return {"failed": bool(problem or lost), "through": through, "stops": stops, "lost": lost, "problem": problem}


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    main()
