"""What a drill has shown: a row for each act, and what this cluster does, beside what `doctor` says of it. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcgemma.destination import Destination
from hpcgemma.drill.acts import Act
from hpcgemma.drill.outcome import Outcome
from hpcgemma.fate import Choice, fates
from hpcgemma.runs.ways import IN_WORDS

COLUMNS = ("ACT", "SEEN", "SAVED", "BACK", "QUEUE", "START", "STEP", "LOST", "SAME", "WENT ON")
"""Of the table, which fits a terminal of 80 columns. SEEN: noticed after; SAVED: saved in; BACK: back after, of which
QUEUE without nodes and START from having nodes to the first step; STEP: resumed at; LOST: steps made again, and how
many would be as promised; SAME: of the steps that were made twice, how many are the same in every bit."""
_WARNING_SLACK_S = 65
"""Slurm may warn up to 60 s early (sbatch --signal); and clocks differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What `hpcgemma doctor` says of the place, and what the run was submitted with."""

    scheduler: str
    destination: Destination | None = None
    """None without Slurm, or where it did not say."""
    choice: Choice | None = None
    signal: str
    lead_s: int
    """Seconds before its time limit at which a job is warned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """One thing that this cluster does."""

    topic: str
    seen: str
    told: str = ""
    """What was to be expected; empty where nothing was."""
    source: str = "doctor says"
    """Who told it, as the beginning of a sentence."""
    differs: bool = False
    """Whether that is not what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole drill."""

    run: str
    folder: str
    profile: str
    scheduler: str
    place: str
    interval: int
    planned: tuple[Act, ...]
    outcomes: tuple[Outcome, ...]
    remarks: tuple[Remark, ...]
    end: str
    """How the run ended."""

    @property
    def missing(self) -> tuple[Act, ...]:
        """Acts that were planned and not done, since the run or the drill ended before."""
        return self.planned[len(self.outcomes) :]

    @property
    def has_failed(self) -> bool:
        """Whether anything was not as promised; what the site refused is not."""
        return bool(self.missing) or any(outcome.problem for outcome in self.outcomes)

    def as_mapping(self) -> dict[str, Any]:
        """Return the report as plain values. These names are what scripts rely on."""
        return {
            "run": self.run,
            "folder": self.folder,
            "profile": self.profile,
            "place": self.place,
            "checkpoint_interval": self.interval,
            "succeeded": not self.has_failed,
            "end": self.end,
            "acts": [_mapping(outcome) for outcome in self.outcomes],
            "not_done": [act.value for act in self.missing],
            "cluster": [dataclasses.asdict(remark) for remark in self.remarks],
        }


def _mapping(outcome: Outcome) -> dict[str, Any]:
    deed = dataclasses.asdict(outcome.deed)
    values = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome) if field.name != "deed"}
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}
    is_same = None if not outcome.repeated_steps else not outcome.differing_steps
    return deed | rounded | {"same_bits": is_same, "problem": outcome.problem, "hint": outcome.hint}


def rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Return the table's rows, under `COLUMNS`."""
    return [_row(outcome) for outcome in outcomes]


def _row(outcome: Outcome) -> tuple[str, ...]:
    act = outcome.deed.act.value
    if outcome.deed.refused:
        return (act, *[""] * (len(COLUMNS) - 2), "refused")
    repeated = outcome.repeated_steps
    same = f"{repeated - outcome.differing_steps}/{repeated}" if repeated else ""
    allowed = f"/{outcome.allowed_loss}" if outcome.allowed_loss else ""
    return (
        act,
        _seconds(outcome.noticed_after_s),
        _seconds(outcome.saved_in_s),
        _seconds(outcome.back_after_s),
        _seconds(outcome.queued_s),
        _seconds(outcome.restart_s),
        "" if outcome.resumed_step is None else str(outcome.resumed_step),
        f"{outcome.lost_steps}{allowed}" if outcome.is_back else "",
        same,
        outcome.way or "not at all",
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"


def remarks_on(outcomes: Sequence[Outcome], prediction: Prediction) -> tuple[Remark, ...]:
    """Return what this cluster does: what was seen of each act, what `doctor` says, and where they differ."""
    found = [_remark(outcome, prediction) for outcome in outcomes]
    repeated = sum(outcome.repeated_steps for outcome in outcomes)
    differing = sum(outcome.differing_steps for outcome in outcomes)
    if repeated:
        same = "each with the same loss and gradient norm, bit for bit"
        seen = f"{repeated} steps were made twice, {same if not differing else f'{differing} of them otherwise'}."
        found.append(Remark(topic="exactness", seen=seen))
    return (*found, *_not_drilled(prediction))


def _remark(outcome: Outcome, prediction: Prediction) -> Remark:
    deed = outcome.deed
    if deed.refused:
        return _refused(outcome, prediction)
    match deed.act:
        case Act.WARNED:
            return Remark(topic="a signal by hand", seen=f"{_saved(outcome)} {_back(outcome)}")
        case Act.RANKS_KILLED:
            noticed = (
                "" if outcome.noticed_after_s is None else f"It was noticed after {outcome.noticed_after_s:.1f} s. "
            )
            return Remark(topic="killed ranks", seen=noticed + _back(outcome))
        case Act.REQUEUED:
            return _requeued(outcome, prediction)
        case Act.TIME_LIMIT:
            return _time_limit(outcome, prediction)
        case Act.STOPPED:
            return Remark(topic="this machine goes down", seen=f"{_saved(outcome)} {_back(outcome)}")
        case _:
            return _job_killed(outcome, prediction)


def _saved(outcome: Outcome) -> str:
    if outcome.saved_in_s is None:
        return "The ranks had saved nothing when they ended."
    return f"The ranks saved within {outcome.saved_in_s:.1f} s of {outcome.signal or 'the signal'}."


def _back(outcome: Outcome) -> str:
    if not outcome.is_back:
        why = outcome.deed.stood_still.rstrip(".") or outcome.ending or "nothing is known"
        return f"The run did not come back: {why}."
    where = IN_WORDS[outcome.way] if outcome.way else "not at all"
    moved = outcome.node_before != outcome.node_after
    node = f" on {outcome.node_after} instead of {outcome.node_before}" if moved and outcome.node_before else ""
    return f"The run went on {where}{node}, {outcome.back_after_s:.0f} s later, {_steps(outcome.lost_steps)} lost."


def _steps(count: int) -> str:
    return {0: "no step", 1: "one step"}.get(count, f"{count} steps")


def _refused(outcome: Outcome, prediction: Prediction) -> Remark:
    site = prediction.destination.site if prediction.destination else None
    told, differs = "", False
    if outcome.deed.act is Act.REQUEUED and site is not None and site.job_requeue is not None:
        told = f"JobRequeue={int(site.job_requeue)}, and the job asks for --requeue"
        differs = site.job_requeue
    seen = f"It was refused: {outcome.deed.refused}"
    return Remark(topic=_TOPICS[outcome.deed.act], seen=seen, told=told, differs=differs)


_TOPICS = {
    Act.WARNED: "a signal by hand",
    Act.RANKS_KILLED: "killed ranks",
    Act.REQUEUED: "requeue",
    Act.TIME_LIMIT: "time limit",
    Act.STOPPED: "this machine goes down",
    Act.JOB_KILLED: "killed job",
}


def _requeued(outcome: Outcome, prediction: Prediction) -> Remark:
    site = prediction.destination.site if prediction.destination else None
    seen = f"You may requeue your jobs. {_saved(outcome)} {_back(outcome)}"
    if outcome.hastened:
        seen += " hpcgemma cut Slurm's wait short, as each look from outside does."
    if site is None:
        return Remark(topic="requeue", seen=seen)
    wait = f"a requeued job waits {site.requeue_wait_s} s by Slurm's rule"
    kill = f"; SIGKILL follows SIGTERM after {site.kill_wait_s} s" if site.kill_wait_s is not None else ""
    waited = outcome.queued_s
    sooner = waited is not None and not outcome.hastened and waited < site.requeue_wait_s - 5
    return Remark(
        topic="requeue",
        seen=seen,
        told=wait + kill,
        differs=bool(outcome.way and outcome.way != "requeue") or sooner or site.job_requeue is False,
    )


def _time_limit(outcome: Outcome, prediction: Prediction) -> Remark:
    came = "No warning came before it."
    early = outcome.before_limit_s
    if early is not None and early > 0:
        came = f"{outcome.signal or 'The end'} came {early:.0f} s before it."
    seen = f"{came} {_saved(outcome)} {_back(outcome)}"
    expected = None if prediction.choice is None else prediction.choice.way
    asked = prediction.lead_s
    told = f"SIG{prediction.signal} comes {asked} s before the limit, up to 60 s early"
    given = (outcome.deed.limit_at or 0.0) - outcome.deed.at
    at_least = min(asked, given - _WARNING_SLACK_S) - 5
    odd = early is None or not at_least <= early <= asked + _WARNING_SLACK_S
    if given < asked:
        told += f" (the limit was lowered to {given:.0f} s from then, so at once)"
    goes_on = ""
    if expected is not None and prediction.choice is not None:
        wanted = {"chain": "link"}.get(expected, expected)
        goes_on = f"; the run goes on by {expected}: {prediction.choice.reason}"
        odd = odd or (outcome.is_back and outcome.way != wanted)
    return Remark(topic="time limit", seen=seen, told=told + goes_on, differs=odd)


def _job_killed(outcome: Outcome, prediction: Prediction) -> Remark:
    still = outcome.deed.stood_still.rstrip(".")
    seen = f"The run stood still: {still}. {_back(outcome)}" if still else _back(outcome)
    if prediction.scheduler == "none":
        told = "afterwards: hpcgemma resume"
        return Remark(topic="killed job", seen=seen, told=told, differs=outcome.way not in ("resume", ""))
    is_chain = prediction.choice is not None and prediction.choice.way == "chain"
    told = "the next link of the chain goes on"
    if not is_chain:
        told = "Slurm requeues no job whose script was killed; hpcgemma resume goes on"
    differs = outcome.is_back and outcome.way != ("link" if is_chain else "resume")
    return Remark(topic="killed job", seen=seen, told=told, source="hpcgemma expects", differs=differs)


def _not_drilled(prediction: Prediction) -> list[Remark]:
    """Return what only others or administrators can make happen, as `doctor` has it."""
    place, choice = prediction.destination, prediction.choice
    if place is None or choice is None:
        return []
    told = fates(
        place.site,
        place.partition,
        place.preemption,
        choice.way,
        signal=prediction.signal,
        lead_s=prediction.lead_s,
    )
    kept = [fate for fate in told if fate.event in ("preemption", "lost node")]
    return [
        Remark(topic=fate.event, seen="No user can make it happen.", told=f"{fate.happens} {fate.response}")
        for fate in kept
    ]


def lines_of(report: Report) -> list[str]:
    """Return what follows the table, line by line."""
    lines = [f"what this {'cluster' if report.scheduler == 'slurm' else 'machine'} does"]
    for remark in report.remarks:
        lines.append(f"  {remark.topic}: {remark.seen}")
        if remark.told:
            lines.append(f"    {'but ' if remark.differs else ''}{remark.source}: {remark.told}")
    lines.append("")
    for outcome in report.outcomes:
        if outcome.problem:
            lines.append(f"Failed: {outcome.deed.act.value}: {outcome.problem}")
            lines.append(f"Try:    {outcome.hint.replace('RUN', report.run)}")
        if outcome.deed.note:
            lines.append(f"Note:   {outcome.deed.act.value}: {outcome.deed.note}")
    if report.missing:
        lines.append(f"Failed: not done, since the run ended before: {', '.join(act.value for act in report.missing)}")
        longer = "drill again, with a longer run: --set training.max_steps=100000"
        why = f"hpcgemma status {report.run}  says why; then drill again"
        lines.append(f"Try:    {longer if report.end.startswith('COMPLETED') else why}")
    lines.append(f"run {report.run} ended as {report.end}" if report.end else f"run {report.run} has not ended")
    return lines
