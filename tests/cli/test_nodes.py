"""`hpcgemma nodes`, and what a submission says of nodes that are left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from hpcgemma.cli.nodes import nodes
from hpcgemma.errors import InputError
from hpcgemma.executors.exclusion import exclusion_for, explained
from hpcgemma.plan import make_plan
from hpcgemma.profiles import load_profile
from hpcgemma.recipes import load_recipe
from hpcgemma.render import render_command_script, render_script
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.refusals import SubmitRefused
from hpcgemma.strikes import add_strike, new_strike, read_strikes, strikes_file

PLAN = make_plan(load_profile("leonardo"), load_recipe("gemma2_9b_lora"), run_name="r", run_id="x", account="a")


def call(*arguments: str) -> str:
    return CliRunner().invoke(nodes, arguments, catch_exceptions=False, standalone_mode=False).output


@pytest.fixture
def two_strikes() -> Path:
    """A node that is left out, and one that may be."""
    for run, node in (("one", "lrdn0001"), ("two", "lrdn0001"), ("two", "lrdn0002")):
        add_strike("leonardo", new_strike(node, run, 1, f"a GPU is lost in {run}"))
    return strikes_file("leonardo")


def test_strikes_are_listed_with_what_they_mean_and_taken_back(two_strikes: Path) -> None:
    shown = call()
    assert "lrdn0001  2, left out" in shown
    assert "lrdn0002  1" in shown
    assert f"or edit {two_strikes}" in shown
    assert "would be" in call("--profile", "leonardo", "--forget", "lrdn0001", "--dry-run")
    assert read_strikes("leonardo").left_out == ["lrdn0001"]
    assert "2 strikes against lrdn0001 taken back" in call("--profile", "leonardo", "--forget", "lrdn0001")
    assert read_strikes("leonardo").nodes == ["lrdn0002"]


def test_nothing_to_show_is_said_and_an_empty_list_in_json() -> None:
    assert "nothing is held against any node" in call()
    assert call("--json").strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--forget", "lrdn0001"), "which cluster's node is meant"),
        (("--profile", "leonardo", "--forget", "lrdn0009"), "nothing is held against a node 'lrdn0009'"),
        (("--profile", "leonado"), "there is no profile named 'leonado'"),
    ],
)
def test_what_cannot_be_taken_back_is_named(two_strikes: Path, arguments: tuple[str, ...], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        call(*arguments)


def test_a_submission_leaves_out_what_the_cluster_knows_and_says_why(
    two_strikes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert exclusion_for(PLAN, SlurmClient()).nodes == ("lrdn0001",), "where Slurm cannot be asked"
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho lrdn0001\n")
    (tmp_path / "sinfo").chmod(0o755)
    add_strike("leonardo", new_strike("gone", "one", 1, "x"))
    add_strike("leonardo", new_strike("gone", "two", 1, "x"))
    with two_strikes.open("a") as file:
        file.write("nonsense\n")
    exclusion = exclusion_for(PLAN, SlurmClient())
    assert exclusion.nodes == ("lrdn0001",)
    left_out, damaged = exclusion.notes
    assert left_out.problem == "node lrdn0001 is left out for its 2 strikes, the last in run two: a GPU is lost in two"
    assert damaged.problem.endswith("is no strike and is passed over")


def test_both_kinds_of_scripts_exclude_nodes_in_a_line_of_their_own() -> None:
    run = render_script(PLAN, run_folder=Path("/r"), command=["x"], exclude=["lrdn0001", "lrdn0002"])
    job = render_command_script(PLAN, job_folder=Path("/r"), command=["x"], exclude=["lrdn0001", "lrdn0002"])
    for script in (run, job):
        assert "\n#SBATCH --exclude=lrdn0001,lrdn0002\n" in script
    with pytest.raises(InputError, match="cannot be written into a job script"):
        render_script(PLAN, run_folder=Path("/r"), command=["x"], exclude=["a\n#SBATCH --uid=0"])


def test_a_refusal_names_the_nodes_that_were_left_out() -> None:
    refused = SubmitRefused("too few nodes", "ask for less")
    assert explained(refused, "leonardo", []) is refused
    assert explained(refused, "leonardo", ["n1"]).problem == "too few nodes; left out for their strikes: n1"
