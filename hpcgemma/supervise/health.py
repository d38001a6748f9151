"""The nodes' health before the ranks of an attempt start: one probe a node, and what follows from their answers."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpcgemma import snapshot
from hpcgemma.plan import Plan
from hpcgemma.processes import node_name
from hpcgemma.runs.folder import RunFolder
from hpcgemma.slurm.values import host_names
from hpcgemma.supervise.allocation import Allocation

LIMIT_S = 60.0
"""Seconds in which a node must have answered."""
_PROBE = tuple(snapshot.start_command(snapshot.PACKAGE, "hpcgemma.supervise.probe"))
_TASK_FAILED = re.compile(r"srun: error: (?P<nodes>\S+): tasks? [\d,-]+: Exited with exit code")
_LONGEST_WORDS = 300
_OF_FILE_SYSTEMS = ("folder", "temporary")
"""Kinds of faults that may be a file system's, which a run then meets on one node after the other."""


@dataclass(frozen=True, slots=True)
class NodeFault:
    """What is wrong with a node."""

    node: str
    kind: str
    """gpu, folder, temporary, silent; or that of the ending from which it follows."""
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a check found."""

    faults: tuple[NodeFault, ...] = ()
    unknown: str = ""
    """Why nothing, or not all, is known of the nodes; no node is sick for that."""
    seconds: float = 0.0
    """How long the check took, the start of the processes included."""
    slowest_s: float = 0.0
    """How long the slowest node looked at itself."""


class HealthCheck:
    """A probe on every node, under way from the moment it is made.

    One srun task a node, that shares what the job has with the ranks of an attempt that are still ending
    (``--overlap``). The only node of a job is this one, which needs no srun.

    Args:
        plan: How many nodes and GPUs.
        folder: The run folder.
        attempt: Number of the attempt.
        allocation: Where it runs.
        environment: What the probes see.
    """

    def __init__(
        self, plan: Plan, folder: RunFolder, attempt: int, allocation: Allocation, environment: Mapping[str, str]
    ) -> None:
        self._nodes = allocation.nodes if on_all_nodes(plan, allocation) else (node_name(environment),)
        self._out = folder.health_log(attempt)
        self._words = self._out.with_suffix(".err")
        self._began = time.monotonic()
        with self._out.open("ab") as out, self._words.open("ab") as err:
            self._process = subprocess.Popen(
                probe_command(plan, folder, allocation),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # as for the ranks' srun: Slurm signals the batch shell's process group
            )

    @property
    def is_over(self) -> bool:
        """Whether all nodes have answered, or the time is up."""
        return self._process.poll() is not None or time.monotonic() - self._began > LIMIT_S

    def result(self, met: Collection[tuple[str, str]]) -> Health:
        """End the check and return what it found.

        Args:
            met: Kinds of faults that this run has met before, each with its node.
        """
        timed_out, seconds = self._process.poll() is None, time.monotonic() - self._began
        self.end()
        answers = [answer for line in _lines(self._out) if (answer := _answer(line)) is not None]
        words = " ".join(_lines(self._words))
        health = verdict(answers, self._nodes, timed_out=timed_out, words=words, met=met)
        return replace(health, seconds=seconds)

    def end(self) -> None:
        """Leave no probe behind; one that hangs in the kernel is not waited for."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()


def probe_command(plan: Plan, folder: RunFolder, allocation: Allocation) -> list[str]:
    """Return the command that starts a probe on every node of a job."""
    probe = [*_PROBE, str(folder.path), str(wanted_gpus(plan))]
    if not on_all_nodes(plan, allocation):
        return probe
    return [
        "srun",
        "--overlap",
        f"--nodes={plan.nodes}",
        f"--ntasks={plan.nodes}",
        "--ntasks-per-node=1",
        "--mpi=none",
        "--unbuffered",
        "--kill-on-bad-exit=0",
        *probe,
    ]


def on_all_nodes(plan: Plan, allocation: Allocation) -> bool:
    """Return whether there are other nodes than this one."""
    return allocation.on_slurm and plan.nodes > 1


def wanted_gpus(plan: Plan) -> int:
    """Return the GPUs that each node must show; 0 where none are counted on."""
    return plan.gpus_per_node or (plan.ranks_per_node if plan.device == "cuda" else 0)


def verdict(
    answers: Sequence[Mapping[str, Any]],
    nodes: Sequence[str],
    *,
    timed_out: bool,
    words: str,
    met: Collection[tuple[str, str]] = (),
) -> Health:
    """Return which nodes are sick.

    A node is sick for what its own probe says, or for its silence where another node was heard. Where none was, the
    check itself did not work, and nothing is known. What all of several nodes say is the site's fault or the check's.

    Args:
        answers: What the probes said, in any order.
        nodes: The job's nodes.
        timed_out: Whether the time was up.
        words: What srun said.
        met: Kinds of faults that the run has met before, each with its node.
    """
    doing = {str(answer["node"]): str(answer["doing"]) for answer in answers if "doing" in answer}
    ended = {str(answer["node"]): answer for answer in answers if "faults" in answer}
    if not doing and not ended:
        return Health(unknown=f"the nodes could not be checked: {words[-_LONGEST_WORDS:] or 'no probe said a word'}")
    faults = [
        NodeFault(node, str(kind), str(sentence))
        for node, answer in ended.items()
        for kind, sentence in answer["faults"].items()
    ]
    faults += [
        NodeFault(node, "silent", silence)
        for node in nodes
        if node not in ended
        and (silence := _silence(node, doing.get(node), words, timed_out=timed_out, others=bool(ended)))
    ]
    shared = [fault for fault in faults if _is_shared(fault, faults, answers=len(ended), met=met)]
    return Health(
        faults=tuple(fault for fault in faults if fault not in shared),
        unknown=f"no fault of one node, since others have it too: {shared[0].sentence}" if shared else "",
        slowest_s=max((float(answer.get("seconds", 0)) for answer in ended.values()), default=0.0),
    )


def _is_shared(
    fault: NodeFault, faults: Sequence[NodeFault], *, answers: int, met: Collection[tuple[str, str]]
) -> bool:
    """Whether a fault is not its node's: every node that answered has it, or it goes with the run."""
    seers = {each.node for each in faults if each.kind == fault.kind}
    is_everywhere = fault.kind != "silent" and len(seers) == answers > 1
    follows = any(kind == fault.kind and node not in seers for kind, node in met)
    return is_everywhere or (fault.kind in _OF_FILE_SYSTEMS and follows)


def _silence(node: str, doing: str | None, words: str, *, timed_out: bool, others: bool) -> str:
    """Return what is wrong with a node whose probe did not end; empty where the check itself may be at fault.

    A probe that was killed was so with the whole step, as at a preemption, of which the batch host hears nothing.
    """
    if timed_out and doing:
        return f"it hangs for {LIMIT_S:.0f} s, {doing}"
    if not others:
        return ""
    if timed_out:
        return f"it starts no process within {LIMIT_S:.0f} s"
    failed = [name for match in _TASK_FAILED.finditer(words) for name in host_names(match["nodes"])]
    return "a process there ends without a word" if node in failed else ""


def _answer(line: str) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and "node" in answer else None


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return []
