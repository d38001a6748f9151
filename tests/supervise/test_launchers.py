from __future__ import annotations

import signal
from pathlib import Path

import pytest

from hpcgemma.plan import make_plan
from hpcgemma.profiles import load_profile
from hpcgemma.recipes import load_recipe
from hpcgemma.supervise.launchers import RankExit, SrunRanks, srun_command


@pytest.mark.parametrize(
    ("printed", "exits"),
    [
        ("srun: error: node2: task 1: Killed\n", [RankExit(1, None, signal.SIGKILL)]),
        ("srun: error: node1: tasks 0-1: Exited with exit code 3\n", [RankExit(0, 3, None)]),
        (
            "srun: error: node2: task 1: Killed\nsrun: Terminating StepId=7.0\n"
            "srun: error: node1: task 0: Terminated\n",
            [RankExit(1, None, signal.SIGKILL)],
        ),
        ("srun: got SIGCONT\n", []),
    ],
)
def test_the_first_rank_that_srun_names_is_the_one_that_failed(
    tmp_path: Path, printed: str, exits: list[RankExit]
) -> None:
    ranks = SrunRanks.__new__(SrunRanks)
    ranks._log = tmp_path / "srun.log"
    ranks._log.write_text(printed)
    assert ranks._task_exits() == exits


def test_srun_gets_everything_explicitly_and_a_percent_sign_as_itself() -> None:
    plan = make_plan(load_profile("leonardo"), load_recipe("gemma2_9b_lora"), run_name="r", run_id="x", account="a")
    words = srun_command(plan, Path("/scratch/50%/attempts/1"), Path("/scratch/50%"))
    assert words[:5] == ["srun", "--nodes=1", "--ntasks=2", "--ntasks-per-node=2", "--cpus-per-task=8"]
    assert "--output=/scratch/50%%/attempts/1/rank-%t.log" in words
    assert words[-1] == "/scratch/50%"
