"""Watching one run until it ends; the run itself needs no watcher."""

from __future__ import annotations

import time
from collections.abc import Iterator

from hpcgemma.cli import console, describe
from hpcgemma.runs import tracking
from hpcgemma.runs.facts import as_mapping
from hpcgemma.runs.progress import read_progress
from hpcgemma.runs.state import RunState, RunStatus
from hpcgemma.runs.store import RunEntry
from hpcgemma.slurm.client import SlurmClient

_LOOK_S = 0.5
"""Seconds between looks at the run folder, which costs the scheduler nothing."""
_LAST_WORDS = ("finished", "failed", "cancelled", "ended")


def wait_for(entry: RunEntry, client: SlurmClient, poll_interval_s: float, *, as_json: bool) -> int:
    """Show a run's progress until it ends, and return the exit code: 0 where it finished, else 1.

    Ctrl-C stops the watching only.
    """
    try:
        with console.progress() as line:
            for state in states(entry, client, poll_interval_s):
                figures = read_progress(entry.folder)
                words = f"{state.status.value} {state.sentence}"
                if figures is None or not figures.total_steps:
                    line.show(words)
                else:
                    line.show(words, figures.step, figures.total_steps, describe.figures(figures))
    except KeyboardInterrupt:
        console.say(
            f"\nThe run goes on without you. Look again: hpcgemma status {entry.name}   "
            f"follow: hpcgemma logs {entry.name} -f   end it: hpcgemma cancel {entry.name}"
        )
        raise
    if as_json:
        console.result_json(as_mapping(entry, state))
    else:
        describe.show_one(entry, state)
    return 0 if state.status is RunStatus.COMPLETED else 1


def states(entry: RunEntry, client: SlurmClient, poll_interval_s: float) -> Iterator[RunState]:
    """Yield the run's state, asked of the scheduler at the site's pace, until it is final.

    The run folder is looked at more often: when it says that the run has ended, the scheduler is asked at once.
    """
    asked, said = float("-inf"), -1
    state: RunState | None = None
    while state is None or not state.status.is_final:
        last_words = sum(event.get("event") in _LAST_WORDS for event in entry.folder.events())
        now = time.monotonic()
        if state is None or last_words != said or now - asked >= poll_interval_s:
            asked, said = now, last_words
            state = tracking.track([entry], client)[0]
            tracking.end_requeue_wait(entry, state, client)
        yield state
        if not state.status.is_final:
            time.sleep(_LOOK_S)
