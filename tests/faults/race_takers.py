"""A hundred processes take the lock of one run at once, whose holder is gone: exactly one gets it.

Run as ``python -m tests.faults.race_takers --trials 100 --folder FOLDER``.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.lock import LockHeldError
from hpcgemma.runs.store import RunEntry
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.supervise.allocation import Allocation
from hpcgemma.supervise.ownership import take_run
from tests.faults.trials import Trials, arguments

TAKERS = 100


def main() -> None:
    """Make the trials that are left, and print what came of all."""
    options = arguments(__doc__, trials=100)
    trials = Trials(options.folder / "race_takers.jsonl", options.trials)
    run = options.folder / "race_takers"
    run.mkdir(parents=True, exist_ok=True)
    for trial in trials.left():
        trials.note(trial, race(run))
    sys.exit(trials.summarize("races of 100 takers of one lock", by="holders"))


def race(run: Path) -> dict[str, Any]:
    """Let processes take a run's lock at once, and return what happened; in the end all of them are gone."""
    start_reader, start_writer = os.pipe()
    end_reader, end_writer = os.pipe()
    answer_reader, answer_writer = os.pipe()
    pids = []
    for number in range(TAKERS):
        pid = os.fork()
        if not pid:
            os.close(start_writer)
            os.close(end_writer)
            os.read(start_reader, 1)  # until the parent closes the other end
            os.write(answer_writer, _take(run, str(number)).encode() + b"\n")
            os.read(end_reader, 1)
            os._exit(0)  # without letting go, as one that is killed
        pids.append(pid)
    for descriptor in (start_writer, answer_writer):
        os.close(descriptor)
    answers = b""
    while answers.count(b"\n") < TAKERS and (more := os.read(answer_reader, 1 << 16)):
        answers += more
    for descriptor in (end_writer, start_reader, end_reader, answer_reader):
        os.close(descriptor)
    for pid in pids:
        os.waitpid(pid, 0)
    said = [json.loads(line) for line in answers.splitlines()]
    holders = [each["job"] for each in said if each["problem"] is None]
    refusals = {each["problem"] for each in said if each["problem"] is not None}
    is_right = len(said) == TAKERS and len(holders) == 1
    is_right = is_right and all(f"another job works on this run: job {holders[0]} on " in each for each in refusals)
    return {"failed": not is_right, "holders": len(holders), "answers": len(said)}


def _take(run: Path, job_id: str) -> str:
    entry = RunEntry(
        run_id="the-run", name="run", path=str(run), profile="local", recipe="r", scheduler="none", created=0.0
    )
    here = Allocation(job_id=job_id, on_slurm=False, host=os.uname().nodename, node_list="", restarts=0)
    try:
        take_run(RunFolder(run), entry, here, SlurmClient())
    except LockHeldError as error:
        return json.dumps({"job": job_id, "problem": error.problem})
    return json.dumps({"job": job_id, "problem": None})


if __name__ == "__main__":
    main()
