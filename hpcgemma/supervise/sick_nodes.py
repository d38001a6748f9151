"""The nodes that a run goes on without: blamed, struck in the cluster's file, and kept from its next job."""

from __future__ import annotations

from hpcgemma import strikes
from hpcgemma.errors import SchedulerError
from hpcgemma.plan import Plan
from hpcgemma.runs.folder import RunFolder
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.supervise.allocation import Allocation
from hpcgemma.supervise.blame import blame, left_nodes, proven
from hpcgemma.supervise.endings import Ending


class SickNodes:
    """What this job holds against nodes; without Slurm there are no others, and nothing is held.

    Args:
        plan: What runs.
        folder: The run folder.
        allocation: Where it runs.
        client: Runs Slurm's commands.
    """

    def __init__(self, plan: Plan, folder: RunFolder, allocation: Allocation, client: SlurmClient) -> None:
        self._plan, self._folder, self._allocation, self._client = plan, folder, allocation, client

    def node_of(self, ending: Ending) -> str | None:
        """Return the node of the rank that failed first; None where it is not known."""
        return self._allocation.node_of(ending.rank, self._plan.ranks_per_node) if self._allocation.on_slurm else None

    def judge(self, ending: Ending, attempt: int) -> tuple[bool, list[str]]:
        """Blame nodes for how an attempt ended, which is recorded already, and strike them.

        Returns:
            Whether one of them is to be left behind at once, and what was done, as sentences.
        """
        if not self._allocation.on_slurm:
            return False, []
        blamed = blame(ending, self.node_of(ending), self._folder.events())
        said, leaves = self._strike_proven(), False
        if blamed is None:
            return False, said
        for fault in blamed.faults:
            is_out, sentence = self._strike(fault.node, attempt, fault.sentence) if blamed.is_struck else (False, "")
            is_left = blamed.is_left or is_out
            leaves |= is_left
            self._folder.record(
                "sick_node",
                attempt=attempt,
                node=fault.node,
                kind=fault.kind,
                sentence=fault.sentence,
                is_struck=blamed.is_struck,
                is_left=is_left,
            )
            said += [sentence] if sentence else []
        return leaves, said

    def _strike_proven(self) -> list[str]:
        """Strike the nodes without which the run has gone further, unless that is done; return what was done."""
        known = strikes.read_strikes(self._plan.profile)
        said = []
        for event in proven(self._folder.events()):
            node, attempt = str(event["node"]), int(event["attempt"])
            if (self._plan.run_name, attempt) not in {(each.run, each.attempt) for each in known.of(node)}:
                said.append(self._strike(node, attempt, str(event["sentence"]))[1])
        return said

    def _strike(self, node: str, attempt: int, why: str) -> tuple[bool, str]:
        """Strike a node, and return whether it is left out for good now, and what was done."""
        try:
            strikes.add_strike(self._plan.profile, strikes.new_strike(node, self._plan.run_name, attempt, why))
        except (OSError, ValueError) as error:
            return False, f"the strike against {node} could not be written: {error}"
        known = strikes.read_strikes(self._plan.profile)
        is_out = node in known.left_out
        place = strikes.strikes_file(self._plan.profile)
        count = f"strike {len(known.of(node))} against {node} in {place}"
        return is_out, f"{count}: it is left out of every later job" if is_out else count

    def without(self) -> tuple[list[str], str]:
        """Return the nodes that the next job is not to have, and what a person should know of that.

        Where Slurm would have too few nodes without them the run goes on with any.
        """
        known = strikes.read_strikes(self._plan.profile)
        wanted = list(dict.fromkeys([*left_nodes(self._folder.events()), *known.left_out]))
        if not wanted or not self._allocation.on_slurm:
            return [], known.problem
        try:
            nodes = self._client.known_nodes(wanted)
            objection = self._client.objection(self._folder.script_file, nodes) if nodes else ""
        except SchedulerError as error:
            return wanted, error.problem  # whether it may be is not known: whoever submits finds out
        if objection:
            return [], f"the run cannot go on without {', '.join(nodes)}, and may be given it again: {objection}"
        return nodes, known.problem
