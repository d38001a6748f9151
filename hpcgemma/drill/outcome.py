"""What became of a run after one act of a drill, read from its events and metrics. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hpcgemma.drill.acts import Deed
from hpcgemma.runs.ways import Way, way_between

Lines = Sequence[Mapping[str, Any]]

_CLOCK_SLACK_S = 1.0
"""Clocks of a login and a compute node may differ by this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One act and what followed. Seconds count from the act, unless it says otherwise."""

    deed: Deed
    noticed_after_s: float | None = None
    """Until the run knew of it; None where nobody was left to notice, or it never was."""
    before_limit_s: float | None = None
    """Between Slurm's warning and the time limit it was of."""
    signal: str = ""
    """The signal that the supervisor got, or the ranks where they were done before it knew, as SIGUSR2."""
    ending: str = ""
    """What the attempt's end says of itself."""
    saved_in_s: float | None = None
    """From the notice until the checkpoint was committed; None where nothing was saved."""
    back_after_s: float | None = None
    """Until the next first step; None where there was none."""
    queued_s: float | None = None
    """Of that, waiting for nodes."""
    restart_s: float | None = None
    """Of that, from having nodes to the first step."""
    hastened: bool = False
    """Whether the wait of a requeued job was cut short, as every look from outside does."""
    way: Way | Literal[""] = ""
    """How it went on; empty: it did not."""
    job_after: str = ""
    node_before: str = ""
    node_after: str = ""
    reached_step: int = 0
    """The last step before."""
    resumed_step: int | None = None
    lost_steps: int = 0
    """Steps that had to be made again."""
    allowed_loss: int = 0
    """How many of these would be as promised."""
    repeated_steps: int = 0
    """Steps that were made twice so far, and can be compared."""
    differing_steps: int = 0
    """Of these, how many had another loss or gradient norm, in any bit."""

    @property
    def is_back(self) -> bool:
        """Whether the run took steps again."""
        return self.back_after_s is not None

    @property
    def shows_nothing(self) -> bool:
        """Whether it was a kill that took no step away, so that none was made again and can be compared."""
        return self.is_back and not self.deed.act.is_announced and self.lost_steps == 0

    @property
    def problem(self) -> str:
        """What is not as promised, as a sentence; empty where all is, or the act could not be done."""
        act = self.deed.act
        if self.deed.refused:
            return ""
        if not self.is_back:
            return self.deed.stood_still or "the run did not come back"
        if self.way == "resume" and not act.may_need_resume:
            return f"the run stood still until it was resumed by hand: {self.deed.stood_still}"
        if self.lost_steps > self.allowed_loss:
            promised = f"at most {self.allowed_loss}" if self.allowed_loss else "none"
            return f"{self.lost_steps} steps were lost, where {promised} should be"
        if self.differing_steps:
            return f"{self.differing_steps} of {self.repeated_steps} steps that were made twice have another loss"
        return ""

    @property
    def hint(self) -> str:
        """What to do about the problem; empty without one."""
        if not self.problem:
            return ""
        if not self.is_back:
            return "hpcgemma logs RUN --supervisor, and the batch log in submitit/ of the run folder, say why"
        if self.way == "resume":
            return (
                "hpcgemma doctor says what this cluster does to a job; with --links 4 at submission a job waits ahead"
            )
        if self.lost_steps > self.allowed_loss:
            return "hpcgemma logs RUN --supervisor says what ended the ranks before they had saved"
        return "a node that computes wrongly, or libraries that differ between nodes: drill again, with --nodes 1"


def outcome_of(deed: Deed, events: Lines, metrics: Lines, *, interval: int, until: float | None = None) -> Outcome:
    """Return what followed an act.

    Args:
        deed: The act as it was done.
        events: The run's events, oldest first.
        metrics: Lines of its metrics.
        interval: Steps between two checkpoints.
        until: When the next act came, in seconds since 1970; None: none did.
    """
    if deed.refused:
        return Outcome(deed=deed)
    end = float("inf") if until is None else until
    after = [event for event in events if deed.at - _CLOCK_SLACK_S <= float(event["time"]) < end]
    back = _first(after, "training", lambda attempt: attempt > deed.attempt)
    between = [event for event in after if back is None or float(event["time"]) <= float(back["time"])]
    ended = _first(between, "ended", lambda attempt: attempt == deed.attempt)
    warned = _first(between, "warned")
    saved = _last_save(between, ended)
    noticed = _noticed_at(warned, saved, ended)
    reached = _last_step(events, metrics, deed.attempt)
    facts: dict[str, Any] = {
        "noticed_after_s": None if noticed is None else max(0.0, noticed - deed.at),
        "before_limit_s": None if noticed is None or deed.limit_at is None else deed.limit_at - noticed,
        "signal": str(warned["signal"]) if warned else _signal_in(ended),
        "ending": str(ended["sentence"]) if ended else "",
        "saved_in_s": None if saved is None or noticed is None else max(0.0, float(saved["time"]) - noticed),
        "reached_step": reached,
        "node_before": _node_of(events, deed.attempt),
        "allowed_loss": 0 if deed.act.is_announced else interval,
        "hastened": _first(between, "hastened") is not None,
    }
    if back is None:
        return Outcome(deed=deed, **facts)
    number, back_at = int(back["attempt"]), float(back["time"])
    began = _first(between, "began", lambda attempt: attempt == number) or back
    began_at = float(began["time"])
    submitted = _last(between, "submitted")
    resumed = _first(between, "resumed", lambda attempt: attempt == number)
    step = 0 if resumed is None else int(resumed["step"])
    way = way_between(between, deed.job_id, str(began.get("job_id", "")))
    freed_at = float(submitted["time"]) if submitted else float(ended["time"]) if ended else deed.at
    repeated, differing = _compare(metrics, deed.attempt, number, step)
    return Outcome(
        deed=deed,
        **facts,
        back_after_s=max(0.0, back_at - deed.at),
        queued_s=0.0 if way == "in place" else max(0.0, began_at - freed_at),
        restart_s=max(0.0, back_at - began_at),
        way=way,
        job_after=str(began.get("job_id", "")),
        node_after=_node_of(events, number),
        resumed_step=step,
        lost_steps=max(0, reached - step),
        repeated_steps=repeated,
        differing_steps=differing,
    )


def _first(events: Lines, kind: str, is_wanted: Any = None) -> Mapping[str, Any] | None:
    """Return the first event of a kind whose attempt is wanted."""
    found = (event for event in events if event.get("event") == kind)
    return next((event for event in found if is_wanted is None or is_wanted(int(event["attempt"]))), None)


def _last(events: Lines, kind: str) -> Mapping[str, Any] | None:
    return next((event for event in reversed(events) if event.get("event") == kind), None)


def _last_save(between: Lines, ended: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the save with which the attempt stopped; a checkpoint that happened to be due is not it."""
    if ended is None or ended.get("ending") != "stopped":
        return None
    saves = [event for event in between if event.get("event") == "saved" and event.get("step") == ended.get("step")]
    return saves[0] if saves else ended  # it had just been saved


def _noticed_at(
    warned: Mapping[str, Any] | None, saved: Mapping[str, Any] | None, ended: Mapping[str, Any] | None
) -> float | None:
    """Return when the run first knew of it: ranks that Slurm signals itself may save before the supervisor hears."""
    times = [float(event["time"]) for event in (warned, ended) if event is not None]
    if saved is not None:
        times.append(float(saved["time"]) - float(saved.get("seconds", 0.0)))
    return min(times, default=None)


def _signal_in(ended: Mapping[str, Any] | None) -> str:
    """Return the signal that the ranks say they were stopped by: Slurm sends its SIGTERM to them, too."""
    found = re.search(r"after (SIG\w+)", str(ended.get("sentence"))) if ended else None
    return found[1] if found else ""


def _node_of(events: Lines, attempt: int) -> str:
    started = _first(events, "started", lambda number: number == attempt)
    return str(started.get("node_list", "")) if started else ""


def _last_step(events: Lines, metrics: Lines, attempt: int) -> int:
    began = _first(events, "training", lambda number: number == attempt)
    steps = [int(line["step"]) for line in metrics if line.get("attempt") == attempt and "loss" in line]
    return max(steps, default=int(began["step"]) if began else 0)


def _compare(metrics: Lines, before: int, after: int, resumed_step: int) -> tuple[int, int]:
    """Return how many steps two attempts have both made, and how many of these differ in loss or gradient norm."""
    made: dict[int, dict[int, tuple[Any, Any]]] = {before: {}, after: {}}
    for line in metrics:
        if line.get("attempt") in made and "loss" in line and int(line["step"]) > resumed_step:
            made[int(line["attempt"])][int(line["step"])] = (line["loss"], line.get("grad_norm"))
    both = made[before].keys() & made[after].keys()
    return len(both), sum(made[before][step] != made[after][step] for step in both)
