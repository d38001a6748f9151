"""Doing an act: what is called, and what cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hpcgemma.drill.acts import Act
from hpcgemma.drill.stage import LocalStage, limit_min
from hpcgemma.drill.training import RECIPE
from hpcgemma.plan import make_plan
from hpcgemma.processes import child_pids, command_line
from hpcgemma.profiles import load_profile
from hpcgemma.recipes import load_recipe
from hpcgemma.slurm.client import OrderRefused
from tests.scenario import wait_until


@pytest.mark.parametrize(("elapsed_s", "minutes"), [(0, 1), (1, 2), (60, 2), (200, 5), (240, 5), (241, 6)])
def test_a_lowered_limit_leaves_a_minute_at_least(elapsed_s: float, minutes: int) -> None:
    assert limit_min(elapsed_s) == minutes
    assert minutes * 60 - elapsed_s >= 60


def test_a_run_whose_controller_has_no_supervisor_yet_cannot_be_met() -> None:
    plan = make_plan(load_profile("local"), load_recipe(RECIPE), run_name="drill-1", run_id="0")
    alone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with pytest.raises(OrderRefused, match=f"process {alone.pid} has no supervisor under it"):
            LocalStage(plan).do(Act.WARNED, str(alone.pid))
    finally:
        alone.communicate()


def test_processes_are_found_under_the_one_that_started_them() -> None:
    parent = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 61 & wait"])
    try:
        commands = ["sleep 60", "sleep 61"]
        wait_until("both", lambda: [command_line(pid) for pid in child_pids(parent.pid)] == commands)
    finally:
        for pid in child_pids(parent.pid):
            subprocess.run(["kill", str(pid)], check=True)
        parent.wait()
    assert child_pids(parent.pid) == []
    assert command_line(parent.pid) == ""
