"""The job that works on a run hands over to the links behind it, and takes over from the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcgemma.plan import make_plan
from hpcgemma.profiles import load_profile
from hpcgemma.recipes import load_recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.supervise.allocation import Allocation
from hpcgemma.supervise.cause import WarningCause
from hpcgemma.supervise.chain import Chain
from tests.sites import recorded

# As the recorded squeue has them.
RUNNING, FAILED, CANCELLED, PENDING = "1000", "1001", "1002", "1003"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Slurm's commands, of which squeue prints what was recorded."""
    (tmp_path / "said").write_text(recorded("squeue"))
    say(tmp_path, f'exec cat "{tmp_path}/said"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def say(tools: Path, words: str) -> None:
    (tools / "squeue").write_text(f"#!/bin/sh\n{words}\n")
    (tools / "squeue").chmod(0o755)


def chain_of(folder: Path, first: str, *links: str, here: str, wanted: int = 0) -> tuple[Chain, RunFolder]:
    run = RunFolder(folder / "run")
    run.path.mkdir()
    run.record("submitted", job_id=first, by="launcher", links=wanted)
    for job_id in links:
        run.record("linked", job_id=job_id)
    profile, recipe = load_profile("leonardo"), load_recipe("gemma2_9b_lora")
    plan = make_plan(profile, recipe, run_name="r", run_id="0123456789ab", account="A_1")
    allocation = Allocation(job_id=here, on_slurm=True, host="node1", node_list="node1", restarts=0)
    return Chain(plan, run, allocation, SlurmClient()), run


def last_event(run: RunFolder) -> dict[str, Any]:
    return {name: value for name, value in run.events()[-1].items() if name != "time"}


def test_a_link_takes_over_from_a_job_that_could_not_hand_over(tools: Path) -> None:
    chain, run = chain_of(tools, FAILED, PENDING, here=PENDING)
    assert chain.take_turn()
    assert last_event(run) == {"event": "continued", "by": "link", "job_id": PENDING}


def test_a_link_does_not_bring_back_what_scancel_ended(tools: Path) -> None:
    chain, run = chain_of(tools, CANCELLED, PENDING, here=PENDING)
    assert not chain.take_turn()
    assert last_event(run) == {"event": "cancelled", "job_id": CANCELLED, "by": "scancel"}


def test_a_successor_does_not_bring_back_what_scancel_ended_in_its_last_moments(tools: Path) -> None:
    chain, run = chain_of(tools, CANCELLED, here=PENDING)
    run.record("continued", by="successor", job_id=PENDING)
    assert not chain.take_turn()
    assert last_event(run) == {"event": "cancelled", "job_id": CANCELLED, "by": "scancel"}


def test_a_run_that_was_cancelled_and_resumed_goes_on(tools: Path) -> None:
    chain, run = chain_of(tools, CANCELLED, here=PENDING)
    run.record("cancelled", job_id=CANCELLED, by="scancel")
    run.record("submitted", job_id=PENDING, by="launcher")
    assert chain.take_turn()


def test_the_runs_own_job_takes_nothing_over(tools: Path) -> None:
    chain, run = chain_of(tools, RUNNING, PENDING, here=RUNNING)
    assert chain.take_turn()
    assert last_event(run)["event"] == "linked"


def test_the_next_link_is_the_first_that_still_waits(tools: Path) -> None:
    chain, _ = chain_of(tools, RUNNING, CANCELLED, PENDING, here=RUNNING)
    assert chain.next_link() == PENDING


def test_a_link_that_nobody_knows_any_more_is_none(tools: Path) -> None:
    chain, _ = chain_of(tools, RUNNING, CANCELLED, here=RUNNING)
    assert chain.next_link() is None


def test_while_slurm_is_silent_a_link_is_taken_to_be_there(tools: Path) -> None:
    chain, _ = chain_of(tools, RUNNING, PENDING, here=RUNNING)
    say(tools, "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    assert chain.next_link() == PENDING


@pytest.mark.parametrize(
    ("links", "wanted", "cause", "used_up"),
    [
        ([], 1, WarningCause.TIME_LIMIT, True),
        ([], 1, WarningCause.PREEMPTED, False),
        ([], 0, WarningCause.TIME_LIMIT, False),
        ([PENDING], 2, WarningCause.TIME_LIMIT, False),
        ([CANCELLED], 2, WarningCause.TIME_LIMIT, True),
    ],
)
def test_a_chain_is_used_up_at_the_time_limit_of_its_last_link(
    tools: Path, links: list[str], wanted: int, cause: WarningCause, used_up: bool
) -> None:
    chain, _ = chain_of(tools, RUNNING, *links, here=RUNNING, wanted=wanted)
    assert chain.is_used_up(cause) is used_up
