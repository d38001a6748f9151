"""Which run a word on the command line means."""

from __future__ import annotations

import re

from hpcgemma.cli import console
from hpcgemma.errors import InputError
from hpcgemma.runs import store
from hpcgemma.runs.store import RunEntry


def find_run(word: str) -> RunEntry | None:
    """Return the run of a name, job id or folder; of several with one name, the newest; None where there is none."""
    found = store.find_runs(word)
    if len(found) > 1:
        console.say(f"{len(found)} runs are called {word!r}; taking the newest, in {found[0].path}")
    return found[0] if found else None


def newest_run() -> RunEntry:
    """Return the run that was submitted last, and say which one it is.

    Raises:
        InputError: There is none.
    """
    runs = store.all_runs()
    if not runs:
        raise InputError("there are no runs yet", "hpcgemma submit --help")
    console.say(f"run {runs[0].name}")
    return runs[0]


def require_run(word: str) -> RunEntry:
    """Return the run that a word means.

    Raises:
        InputError: There is none.
    """
    run = find_run(word)
    if run is None:
        kind = "job id" if re.fullmatch(r"\d+", word) else "name or folder"
        raise InputError(f"no run of hpcgemma has the {kind} {word!r}", "hpcgemma status  lists all runs")
    return run
