"""Sick nodes on a real Slurm: found before the ranks start or by how they end, left out, and in the end for good."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcgemma.slurm.values import host_names
from tests.scenario import RECIPE, Terminal, Training, assert_same_training

from .cluster import SlurmCluster
from .login import REQUEUE, SUCCESSOR, TWO_NODES
from .lost_gpu import SENTENCE, LostGpu


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    """Four nodes."""
    with SlurmCluster(accounting=False, grace_time_s=60) as running:
        yield running


@pytest.fixture
def gpu(tmp_path: Path) -> LostGpu:
    """The GPU that the second node has lost."""
    return LostGpu(tmp_path)


@pytest.fixture
def login(terminal: Terminal, cluster: SlurmCluster, tmp_path: Path, gpu: LostGpu) -> Terminal:
    """The login node of a cluster whose second node has lost its GPU."""
    cluster.wait_for(lambda: not cluster.run("squeue", "-h").stdout, "idle nodes, of which a job gets the first ones")
    place = {"SLURM_CONF": str(cluster.conf), **gpu.environment, "HPCGEMMA_DATA_DIR": str(tmp_path / "data")}
    return Terminal(terminal.folder, {**terminal.environment, **place})


def went_on_elsewhere(run: Training, by: str) -> None:
    """Check that the first attempt ended for node2's sake, and the second went on without it."""
    assert run.wait_for_end()["state"] == "COMPLETED"
    first, second = run.events("ended")
    assert (first["ending"], first["sentence"], second["ending"]) == ("sick_node", SENTENCE, "finished")
    [continued] = run.events("continued")
    assert (continued["by"], continued["without"]) == (by, ["node2"])
    [started] = run.events("started")
    assert started["node_list"] == "node[3-4]"


@pytest.mark.parametrize(
    ("way", "profile", "more"),
    [("requeue", REQUEUE, ()), ("link", SUCCESSOR, ("--links", "2"))],
    ids=["requeue", "link"],
)
def test_a_node_that_has_lost_its_gpu_is_left(
    login: Terminal, reference: Training, way: str, profile: str, more: tuple[str, ...]
) -> None:
    run = login.submit(f"sick-{way}", profile, *TWO_NODES, *more)
    went_on_elsewhere(run, way)
    assert_same_training(run, reference)


def test_a_node_that_is_sick_twice_is_left_out_for_good_until_it_is_forgiven(
    login: Terminal,
) -> None:
    run = login.submit("sick", SUCCESSOR, *TWO_NODES)
    run.wait_for_event("continued")
    [held] = login.json("nodes", "--profile", SUCCESSOR)
    assert (held["node"], held["left_out"]) == ("node2", False)
    went_on_elsewhere(run, "successor")
    with Path(held["file"]).open("a") as file:
        file.write("2026-11-20 12:00:00 node2 another/3 seen by a person\n")
    [held] = login.json("nodes")
    assert [(strike["run"], strike["attempt"]) for strike in held["strikes"]] == [("sick", 1), ("another", 3)]
    assert held["left_out"]

    third = login.submit("third", SUCCESSOR, *TWO_NODES)
    assert "\n#SBATCH --exclude=node2\n" in (third.folder / "job.sbatch").read_text()
    assert "node2" not in host_names(third.wait_for_event("started")["node_list"])
    login.call("cancel", third.name)
    four = ("submit", "--profile", SUCCESSOR, "--recipe", str(RECIPE), "--set", "resources.nodes=4")
    refused = login.call(*four, "--set", "resources.gpus_per_node=1", code=3)
    assert "left out for their strikes: node2" in refused.stderr

    login.call("nodes", "--profile", SUCCESSOR, "--forget", "node2")
    assert login.json("nodes") == []
    shown = login.call(*four, "--set", "resources.gpus_per_node=1", "--dry-run").stdout
    assert "--exclude" not in shown


def test_where_slurm_has_no_other_node_the_run_goes_on_with_any(login: Terminal, gpu: LostGpu) -> None:
    run = login.submit("all-four", SUCCESSOR, "--set", "resources.nodes=4", "--set", "resources.gpus_per_node=1")
    ended = run.wait_for_event("ended")
    assert ended["sentence"] == SENTENCE
    gpu.find()
    assert run.wait_for_event("started")["node_list"] == "node[1-4]"
    assert "without" not in run.events("continued")[0]
    assert "the run cannot go on without node2" in run.logs()
    login.call("cancel", run.name)


def test_a_node_whose_ranks_end_twice_without_a_word_is_left(
    login: Terminal, reference: Training, gpu: LostGpu, tmp_path: Path
) -> None:
    gpu.find()
    # What starts a rank fails on one node, before the rank can say anything.
    start = tmp_path / "start"
    start.write_text('#!/bin/sh\n[ "$SLURMD_NODENAME" = node2 ] && exit 1\nexec "$@"\n')
    step = tmp_path / "srun"
    step.write_text(
        '#!/bin/sh\ncase " $* " in *" hpcgemma.train "*)\nfor word; do shift; case "$command$word" in\n'
        f'--*) set -- "$@" "$word";; *) set -- "$@" ${{command:-"{start}"}} "$word"; command=" ";; esac; done;; esac\n'
        f'exec {shutil.which("srun")} "$@"\n'
    )
    for tool in (start, step):
        tool.chmod(0o755)
    run = login.submit("wordless", SUCCESSOR, *TWO_NODES)
    assert run.wait_for_end()["state"] == "COMPLETED"
    assert [(event["ending"], event["node"]) for event in run.events("ended")] == [
        ("unknown", "node2"),
        ("unknown", "node2"),
        ("finished", None),
    ]
    assert run.events("continued")[0]["without"] == ["node2"]
    [blamed] = run.events("sick_node")
    assert blamed["sentence"].startswith(
        "2 attempts in a row failed there first, the last so: rank 1 ended with exit code"
    )
    [held] = login.json("nodes")
    assert (held["node"], len(held["strikes"])) == ("node2", 1), "the run went further without it"
    assert_same_training(run, reference)
