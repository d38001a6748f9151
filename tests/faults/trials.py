"""Trials whose outcomes are kept, so that an interrupted script goes on where it was."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hpcgemma import files


class Trials:
    """Trials with numbers from 0, and a file with a line for each that was made.

    Args:
        path: The file.
        wanted: How many trials are to be made, those of earlier calls among them.
    """

    def __init__(self, path: Path, wanted: int) -> None:
        self._path, self._wanted = path, wanted
        path.parent.mkdir(parents=True, exist_ok=True)
        self._began, self._made_before = time.monotonic(), len(self.outcomes())

    def outcomes(self) -> dict[int, dict[str, Any]]:
        """Return the outcomes so far, by trial."""
        return {line["trial"]: line for line in files.read_json_lines(self._path)}

    def left(self) -> Iterator[int]:
        """Yield the trials that were not made yet."""
        made = self.outcomes()
        yield from (trial for trial in range(self._wanted) if trial not in made)

    def note(self, trial: int, outcome: dict[str, Any]) -> None:
        """Keep the outcome of a trial; ``failed`` says whether it did."""
        files.append_json_line(self._path, {"trial": trial, **outcome})

    def summarize(self, what: str, *, by: str) -> int:
        """Print the figures of all trials, and return 1 where one failed or is missing, else 0.

        Args:
            what: The trials, in words.
            by: The fact of an outcome by which they are counted.
        """
        outcomes = list(self.outcomes().values())
        failed = [each for each in outcomes if each["failed"]]
        seconds = time.monotonic() - self._began
        made = len(outcomes) - self._made_before
        print(f"{len(outcomes)} of {self._wanted} {what}: {len(failed)} failed; {made} made now, in {seconds:.0f} s")
        counts, failures = (Counter(str(each.get(by)) for each in chosen) for chosen in (outcomes, failed))
        print(f"| {by} | trials | failed |\n|---|---:|---:|")
        for value, count in sorted(counts.items(), key=lambda pair: -pair[1]):
            print(f"| {value} | {count} | {failures[value]} |")
        for each in failed[:10]:
            print(json.dumps(each))
        return 1 if failed or len(outcomes) < self._wanted else 0


def arguments(
    description: str | None, *, trials: int, more: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """Return what a script is called with: ``folder``, ``trials`` and ``seed``, and what ``more`` adds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=trials, help="trials, those made before among them")
    parser.add_argument("--folder", type=Path, required=True, help="where outcomes are kept")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments; a trial has its own")
    if more is not None:
        more(parser)
    return parser.parse_args()
