"""How a run went on from one attempt to the next. Pure."""

from __future__ import annotations

from typing import Literal

from hpcgemma.runs.attempts import Events

Way = Literal["in place", "successor", "requeue", "link", "resume"]
"""In the same allocation, in a job submitted from inside, in the same job queued again, in a job that waited ahead, or
because somebody resumed it."""

IN_WORDS: dict[Way, str] = {
    "in place": "in the same allocation",
    "successor": "in a successor",
    "requeue": "in the same job, anew",
    "link": "in the next link",
    "resume": "by hpcgemma resume",
}
"""Each as the end of "it went on"."""


def way_between(between: Events, job_before: str, job_after: str) -> Way:
    """Return how a run went on.

    Args:
        between: Its events after the first step of the one attempt, until the next one had its nodes.
        job_before: Job of the one.
        job_after: Job of the next one.
    """
    if any(event.get("event") == "submitted" and event.get("by") != "supervisor" for event in between):
        return "resume"
    said = next((event for event in reversed(between) if event.get("event") == "continued"), None)
    if said is not None:
        by = str(said.get("by"))
        return "successor" if by == "successor" else "link" if by == "link" else "requeue"
    if job_after != job_before:
        return "link"
    # A supervisor that starts the ranks again says so; one that was killed with its nodes could say nothing.
    return "in place" if any(event.get("event") == "relaunched" for event in between) else "requeue"
