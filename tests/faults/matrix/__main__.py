"""Play the scenarios that are left, keep what was seen of each, and say which failed."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from hpcgemma import files
from tests.scenario import opened_terminal
from tests.slurm.cluster import cgroup_available, missing_reason

from .catalogue import SCENARIOS, Scenario
from .lab import TRACKINGS, Lab, Tracking


def main() -> None:
    """Play on each kind of process tracking what is not in the file of outcomes yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where outcomes are kept")
    parser.add_argument("--tracking", choices=TRACKINGS, action="append", help="both without it")
    parser.add_argument("--only", metavar="NAME", action="append", help="play these, also where they were played")
    options = parser.parse_args()
    if missing := missing_reason():
        sys.exit(missing)
    options.folder.mkdir(parents=True, exist_ok=True)
    codes = [_play_all(options.folder, tracking, options.only) for tracking in options.tracking or TRACKINGS]
    sys.exit(max(codes))


def outcomes(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what was seen so far, by process tracking and scenario."""
    lines = [line for tracking in TRACKINGS for line in files.read_json_lines(_file(folder, tracking))]
    return {(line["tracking"], line["scenario"]): line for line in lines}


def _file(folder: Path, tracking: Tracking) -> Path:
    return folder / f"matrix-{tracking}.jsonl"


def _play_all(folder: Path, tracking: Tracking, only: list[str] | None) -> int:
    if tracking == "cgroup" and not cgroup_available():
        print("this machine has no writable cgroup v1 freezer, which proctrack/cgroup needs")
        return 1
    made = outcomes(folder)
    left = [each for each in SCENARIOS if (each.name in only if only else (tracking, each.name) not in made)]
    root = folder / f"matrix-{tracking}"
    root.mkdir(exist_ok=True)
    if left:
        with opened_terminal(root) as terminal:
            reference = terminal.training("reference")
            if not reference.events("finished"):
                reference = terminal.submit("reference", "local")
                assert reference.wait_for_end()["state"] == "COMPLETED", reference.logs()
            lab = Lab(terminal, reference, tracking, root)
            try:
                for each in left:
                    files.append_json_line(_file(folder, tracking), _play(each, lab))
            finally:
                lab.close()
    made = outcomes(folder)
    failed = [name for (where, name), line in made.items() if where == tracking and line["problem"]]
    count = sum(where == tracking for where, _ in made)
    print(f"{tracking}: {count} of {len(SCENARIOS)} scenarios played, {len(failed)} failed: {', '.join(failed)}")
    return 1 if failed or count < len(SCENARIOS) else 0


def _play(scenario: Scenario, lab: Lab) -> dict[str, Any]:
    began, problem, seen = time.monotonic(), "", {}
    try:
        with lab.played():
            seen = dataclasses.asdict(scenario.play(lab))
    except Exception:  # noqa: BLE001 - whatever it is, it is this scenario's outcome
        problem = traceback.format_exc()[-6000:]
    seconds = time.monotonic() - began
    print(
        f"{lab.tracking} {scenario.row} {scenario.name}: {'FAILED' if problem else 'ok'} in {seconds:.0f} s", flush=True
    )
    return {"tracking": lab.tracking, "scenario": scenario.name, "seconds": seconds, "problem": problem, **seen}


if __name__ == "__main__":
    main()
