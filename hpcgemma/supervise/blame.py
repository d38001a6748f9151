"""Which node, if any, is to blame for how an attempt ended. Pure.

A node is struck where the machine itself is the likely cause. That ranks lost each other says nothing of where: the
survivors say it. What the recipe, the data, the code or the size of the job decide is no node's fault.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcgemma.supervise.endings import Ending, EndingKind, attempts_without_progress
from hpcgemma.supervise.health import NodeFault

_REPEATS = 2
"""Attempts in a row without progress that a node ended, after which the run goes on without it."""
_MACHINES = frozenset({EndingKind.SICK_NODE, EndingKind.GPU_FAULT})
"""Endings of which the machine is the likely cause at the first time."""
_PERHAPS = frozenset(
    {
        EndingKind.RANK_DIED,
        EndingKind.HUNG,
        EndingKind.GPU_FAULT,
        EndingKind.FILE_SYSTEM,
        EndingKind.UNKNOWN,
    }
)
"""Endings that may be a node's fault, and are taken for it where they repeat on one node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """The nodes that are to blame for an attempt's end."""

    faults: tuple[NodeFault, ...]
    is_struck: bool = True
    """Whether it counts for later runs too."""
    is_left: bool = True
    """Whether this run is to go on without them at once."""


def blame(ending: Ending, node: str | None, events: Sequence[Mapping[str, Any]]) -> Blame | None:
    """Return which nodes are to blame for an ending, and what follows; None where none is.

    Args:
        ending: The last attempt's.
        node: Where the rank is that failed first; None where that is not known.
        events: The run's, that ending included.

    What merely repeats on a node may come with the run, and would then strike one healthy node after the other: it is
    held against the node when the run has gone further without it (``proven``).
    """
    if ending.faults:
        return Blame(faults=ending.faults)
    if node is None:
        return None
    repeats = ending.kind in _PERHAPS and _repeats(events, node)
    is_machines = ending.kind in _MACHINES or _is_bus_error(ending)
    if not is_machines and not repeats:
        return None
    again = f"{_REPEATS} attempts in a row failed there first, the last so: " if repeats else ""
    return Blame(
        faults=(NodeFault(node, ending.kind.value, f"{again}{ending.sentence}"),),
        is_struck=is_machines,
        is_left=repeats or ending.kind is EndingKind.SICK_NODE,
    )


def proven(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the `sick_node` events of nodes that were left without a strike, and without which the run has saved.

    Of several that were left before it saved only the last counts: the failure went with the run.
    """
    found: list[Mapping[str, Any]] = []
    waiting: list[Mapping[str, Any]] = []
    for event in events:
        if event.get("event") == "sick_node" and event.get("is_left") and not event.get("is_struck"):
            waiting.append(event)
        elif event.get("event") == "continued":
            waiting = [each for each in waiting if each["node"] in event.get("without", ())]
        elif event.get("event") == "saved":
            found, waiting = [*found, *waiting[-1:]], []
    return found


def left_nodes(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the nodes that a run goes on without, since the user last submitted or resumed it."""
    nodes: dict[str, None] = {}
    for event in events:
        if event.get("event") == "submitted" and event.get("by") != "supervisor":
            nodes = {}
        elif event.get("event") == "sick_node" and event.get("is_left"):
            nodes[str(event.get("node"))] = None
    return list(nodes)


def met_faults(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the kinds of faults that a run has met, each with its node."""
    return [(str(event.get("kind")), str(event.get("node"))) for event in events if event.get("event") == "sick_node"]


def _repeats(events: Sequence[Mapping[str, Any]], node: str) -> bool:
    """Whether the last attempts in a row failed first on one node, with no progress between."""
    ended = [event for event in events if event.get("event") == "ended"][-_REPEATS:]
    return (
        attempts_without_progress(events) >= _REPEATS
        and [event.get("node") for event in ended if event.get("ending") in _PERHAPS] == [node] * _REPEATS
    )


def _is_bus_error(ending: Ending) -> bool:
    return ending.kind is EndingKind.RANK_DIED and ending.signal == signal.SIGBUS
