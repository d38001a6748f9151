"""Why an attempt ended, and what follows from it. Pure."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hpcgemma.runs.failure_signs import SICK_NODE_HINT, line_of, sign_in
from hpcgemma.supervise.hang import Hang
from hpcgemma.supervise.health import NodeFault
from hpcgemma.supervise.launchers import RankExit


class EndingKind(StrEnum):
    """What ended an attempt."""

    FINISHED = "finished"
    STOPPED = "stopped"
    """Saved at a step boundary after a warning."""
    RANK_DIED = "rank_died"
    """A signal killed a rank."""
    HUNG = "hung"
    """No rank gave a sign of life any more."""
    LOST_WARNED = "lost_warned"
    """The ranks were ended after a warning, before they could save."""
    DATA = "data"
    INPUT = "input"
    CUDA_OOM = "cuda_oom"
    HOST_OOM = "host_oom"
    """The memory of the node, or the part of it that the job asked for, is full."""
    GPU_FAULT = "gpu_fault"
    SICK_NODE = "sick_node"
    """A node failed its health check, or a rank the first contact with the others."""
    NODE_FAILED = "node_failed"
    COMMUNICATION = "communication"
    """Ranks lost each other (NCCL, gloo), and none of them says or shows why."""
    FILE_SYSTEM = "file_system"
    """A file system went away and may be back."""
    NON_FINITE_LOSS = "non_finite_loss"
    DISK = "disk"
    """Full, over quota or read-only."""
    ERROR = "error"
    """An exception of the program: of hpcgemma, a library, or code of the user."""
    UNKNOWN = "unknown"
    """A rank ended without a word, as where its node cannot start it."""

    @property
    def is_retried_in_place(self) -> bool:
        """Whether the same attempt may well succeed if it is made again.

        What the recipe, the data, the code or the size of the job decide would end in the same way.
        """
        return self in _TRANSIENT


_TRANSIENT = frozenset(
    {
        EndingKind.RANK_DIED,
        EndingKind.HUNG,
        EndingKind.GPU_FAULT,
        EndingKind.NODE_FAILED,
        EndingKind.COMMUNICATION,
        EndingKind.FILE_SYSTEM,
        EndingKind.SICK_NODE,
        EndingKind.UNKNOWN,
    }
)

WARNED_ENDINGS = frozenset({EndingKind.STOPPED, EndingKind.LOST_WARNED})
"""Endings that a warning asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended: kind, sentence and remedy, and the step it had reached."""

    kind: EndingKind
    sentence: str
    hint: str = ""
    step: int | None = None
    rank: int | None = None
    """The first that failed; None where that is not known."""
    signal: int | None = None
    """What killed it; None where no signal did, or it is not known."""
    faults: tuple[NodeFault, ...] = ()
    """What a health check found."""


class NextMove(StrEnum):
    """What the supervisor does after an attempt."""

    FINISH = "finish"
    RELAUNCH = "relaunch"
    CONTINUE = "continue"
    GIVE_UP = "give_up"
    STAY_CANCELLED = "stay_cancelled"


_COMMUNICATION_HINT = (
    "hpcgemma logs shows the ranks' own words; if it happens again: the network (network.socket_interface of the "
    "profile, NCCL_DEBUG=INFO), or a sick node"
)
_SIGNAL_HINT = "if it happens again: host memory (--set resources.memory_per_gpu_mb) or a sick node"
_CRASH_HINT = "hpcgemma logs shows its last lines; at the same step again a library is broken, else perhaps the node"
_SIGNAL_HINTS = {
    int(signal.SIGBUS): "a file that became shorter while it was read, a full /dev/shm (--set data.num_workers=0), "
    "or a sick node",
    int(signal.SIGSEGV): _CRASH_HINT,
    int(signal.SIGABRT): _CRASH_HINT,
    int(signal.SIGFPE): _CRASH_HINT,
    int(signal.SIGILL): "a library was built for other processors than this node's",
}
_DISK_HINT = "free some space (df -h, or the site's quota command); the last good checkpoint is kept: hpcgemma resume"


def classify(
    exits: Sequence[RankExit],
    outcome: Mapping[str, Any] | None,
    *,
    warned: bool,
    save_problem: str = "",
    log: str = "",
) -> Ending:
    """Return why an attempt ended.

    What a rank says of its own failure comes first, then what the log shows of a cause, then the signal that killed
    one; that ranks lost each other is the cause only where nothing else is.

    Args:
        exits: How the ranks ended, the first failure first where that is known.
        outcome: What the trainer wrote of its own end; None where it could not.
        warned: Whether a warning had come.
        save_problem: Why the attempt's newest checkpoint could not be written; empty where it could.
        log: The end of what the first failing rank wrote, and of what srun wrote.
    """
    outcome = outcome or {}
    word, step = outcome.get("outcome"), outcome.get("step")
    clean = all(each.is_clean for each in exits)
    if word == "finished":  # final/ is complete, whatever became of a rank or of its helpers then
        return Ending(kind=EndingKind.FINISHED, sentence=f"finished at step {step}", step=step)
    if clean and word == "stopped":
        return Ending(
            kind=EndingKind.STOPPED,
            sentence=f"saved at step {step} after {outcome.get('signal') or 'a warning'}",
            step=step,
        )
    by_warning = {int(signal.SIGTERM), int(signal.SIGUSR1), int(signal.SIGUSR2), int(signal.SIGKILL)}
    if warned and word != "failed":
        return Ending(
            kind=EndingKind.LOST_WARNED,
            sentence="ended before it could save; the newest checkpoint counts",
        )
    if save_problem and word is None and not clean:
        # Where a checkpoint cannot be written, the trainer's last word cannot be either.
        return Ending(kind=EndingKind.DISK, sentence=f"nothing more could be written: {save_problem}", hint=_DISK_HINT)
    killed = next((each for each in exits if each.signal is not None or (each.code or 0) > 128), None)
    said = f"{outcome.get('sentence', '')}"
    # A survivor's complaint that its peers are gone is a consequence; the peer's own end is the cause.
    if word == "failed" and outcome.get("kind") != "peer_lost":
        return Ending(
            kind=_kind_of(str(outcome.get("kind"))),
            sentence=said,
            hint=str(outcome.get("hint", "")),
            step=step,
            rank=outcome.get("rank"),
        )
    failed = next((each for each in exits if not each.is_clean), RankExit(None, 0, None))
    sign = sign_in(log)
    if sign is not None and sign.kind != "communication":
        return Ending(
            kind=EndingKind(sign.kind),
            sentence=f"{sign.sentence}: {line_of(log, sign)}",
            hint=sign.hint,
            step=step,
            rank=failed.rank,
        )
    number = 0 if killed is None else killed.signal or (killed.code or 0) - 128
    if number in by_warning and number != signal.SIGKILL and word is None:
        return Ending(kind=EndingKind.LOST_WARNED, sentence=f"{_signal_name(number)} came before training began")
    # NCCL's watchdog aborts a rank that has waited for another too long.
    if killed is not None and not (sign is not None and number == signal.SIGABRT):
        return Ending(
            kind=EndingKind.RANK_DIED,
            sentence=f"{_rank_words(killed.rank)} was killed by {_signal_name(number)}",
            hint=_SIGNAL_HINTS.get(number, _SIGNAL_HINT),
            rank=killed.rank,
            signal=number,
        )
    if word == "failed" or sign is not None:
        return Ending(
            kind=EndingKind.COMMUNICATION,
            sentence=f"a rank lost its peers: {said or (line_of(log, sign) if sign else '')}",
            hint=_COMMUNICATION_HINT,
            step=step,
            rank=outcome.get("rank", failed.rank),
        )
    return Ending(
        kind=EndingKind.UNKNOWN,
        sentence=f"{_rank_words(failed.rank)} ended with exit code {failed.code} and no word of why",
        hint="hpcgemma logs shows its last lines",
        rank=failed.rank,
    )


def hang_ending(hang: Hang) -> Ending:
    """Return the ending of an attempt whose ranks were killed because they hung."""
    who = "the ranks hang" if hang.behind is None else f"rank {hang.behind} hangs"
    return Ending(
        kind=EndingKind.HUNG,
        sentence=f"{who} ({hang.phase}, after step {hang.step}): no sign of life for {hang.silent_s:.0f} s",
        hint="the logs of that attempt end with the ranks' stacks (hpcgemma logs RUN --attempt N --rank R); if it "
        "happens again at another step: a sick node or file system; at the same step: look at that step's rows. Where "
        "a step takes so long: --set watch.training_s=600",
        step=hang.step,
        rank=hang.behind,
    )


def preparation_hang_ending(hang: Hang, log: Path) -> Ending:
    """Return the ending of an attempt whose ranks were not started, because the preparation of the data hung.

    Args:
        hang: For how long it was silent.
        log: Of the process that prepares, which ends with its stacks.
    """
    return Ending(
        kind=EndingKind.HUNG,
        sentence=f"the preparation of the data hangs: no sign of life for {hang.silent_s:.0f} s",
        hint=f"{log} ends with its stacks; mostly the file system of the data, the tokenizer or the run does not "
        "answer. Where it is only slow: --set watch.elsewhere_s=7200",
    )


def sick_ending(faults: tuple[NodeFault, ...]) -> Ending:
    """Return the ending of an attempt whose ranks were not started, because a node failed its health check."""
    return Ending(
        kind=EndingKind.SICK_NODE,
        sentence="; ".join(f"node {fault.node} is sick: {fault.sentence}" for fault in faults),
        hint=SICK_NODE_HINT,
        faults=faults,
    )


def next_move(
    ending: Ending,
    *,
    without_progress: int,
    max_relaunches: int,
    cancelled: bool,
    keeps_allocation: bool = False,
    leaves_node: bool = False,
) -> NextMove:
    """Return what follows an ending.

    Args:
        ending: The last attempt's.
        without_progress: Attempts in a row, this one included, that ended with no new checkpoint.
        max_relaunches: Attempts allowed without progress, beyond the first.
        cancelled: Whether the user asked for the end.
        keeps_allocation: Whether the job goes on as before, although a warning came.
        leaves_node: Whether a node of the job is to be left behind, and there may be others.
    """
    if ending.kind is EndingKind.FINISHED:
        return NextMove.FINISH
    if cancelled:
        return NextMove.STAY_CANCELLED
    if without_progress > max_relaunches:
        return NextMove.GIVE_UP
    if ending.kind in WARNED_ENDINGS:
        return NextMove.RELAUNCH if keeps_allocation else NextMove.CONTINUE
    if leaves_node:
        return NextMove.CONTINUE
    return NextMove.RELAUNCH if ending.kind.is_retried_in_place else NextMove.GIVE_UP


def save_problem(events: Sequence[Mapping[str, Any]]) -> str:
    """Return why the newest checkpoint of the present attempt could not be written; empty where it could."""
    for event in reversed(events):
        if event.get("event") in ("saved", "started"):
            break
        if event.get("event") == "save_failed":
            return str(event.get("problem"))
    return ""


def attempts_without_progress(events: Sequence[Mapping[str, Any]]) -> int:
    """Return how many attempts in a row, up to now, ended without saving a step beyond those before.

    Preemption does not count: it says nothing about the run, and the next job may have more luck.
    """
    count, furthest = 0, -1
    for event in events:
        if event.get("event") == "saved" and int(event.get("step", -1)) > furthest:
            furthest, count = int(event["step"]), 0
        elif event.get("event") == "submitted":
            count = 0
        elif event.get("event") == "resumed":
            furthest = min(furthest, int(event.get("step", furthest)))  # a broken checkpoint may take it back
        elif event.get("event") == "ended" and event.get("cause") != "preempted":
            count += 1
    return count


def _kind_of(word: str) -> EndingKind:
    return EndingKind(word) if word in set(EndingKind) else EndingKind.ERROR


def _rank_words(rank: int | None) -> str:
    return "a rank" if rank is None else f"rank {rank}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
