"""`hpcgemma drill` on a real Slurm: every act by Slurm's own means, and a report of what this cluster did."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenario import Terminal

from .cluster import SlurmCluster
from .conftest import require_cgroup

PROFILES = Path(__file__).parent.parent / "profiles"
SUCCESSOR = str(PROFILES / "leonardo_test.yaml")
TIMEOUT_S = 800  # six starts, and Slurm's clock
ONE_RANK = ("--set", "resources.gpus_per_node=1")  # the other test has two
SPOT = str(PROFILES / "leonardo_spot.yaml")
REQUEUE = str(PROFILES / "leonardo_requeue.yaml")


@pytest.fixture
def login(terminal: Terminal) -> Iterator[Terminal]:
    """The login node of a cluster without accounting."""
    with SlurmCluster(accounting=False, grace_time_s=60) as cluster:
        yield Terminal(terminal.folder, {**terminal.environment, "SLURM_CONF": str(cluster.conf)})


def by_act(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the acts of a report by their names, each checked for what holds of all of them."""
    assert report["succeeded"] is True, report
    assert report["not_done"] == []
    assert report["end"].startswith("COMPLETED: finished at step "), report["end"]
    for act in report["acts"]:
        if act["refused"]:
            continue
        if act["act"] in ("ranks-killed", "job-killed"):
            assert 0 < act["lost_steps"] <= act["allowed_loss"]
            assert act["repeated_steps"] == act["lost_steps"]
            assert act["same_bits"] is True
        else:
            assert act["lost_steps"] == 0
            assert 0 <= act["saved_in_s"] < act["back_after_s"]
            assert act["resumed_step"] == act["reached_step"]
    return {act["act"]: act for act in report["acts"]}


def remarks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {remark["topic"]: remark for remark in report["cluster"]}


def test_a_whole_drill_shows_what_the_cluster_does_as_doctor_says(login: Terminal) -> None:
    report = login.json("drill", "--profile", SUCCESSOR, *ONE_RANK, timeout_s=TIMEOUT_S)
    acts = by_act(report)
    ways = {name: act["way"] for name, act in acts.items()}
    assert ways == {
        "warned": "in place",
        "ranks-killed": "in place",
        "requeued": "requeue",
        "time-limit": "successor",
        "job-killed": "resume",
    }
    assert (acts["time-limit"]["signal"], acts["requeued"]["signal"]) == ("SIGUSR2", "SIGTERM")
    assert acts["time-limit"]["before_limit_s"] > 0
    assert "ended as FAILED" in acts["job-killed"]["stood_still"]
    assert acts["job-killed"]["noticed_after_s"] is None
    said = remarks(report)
    assert [topic for topic, remark in said.items() if remark["differs"]] == []
    assert said["killed job"]["seen"].startswith("The run stood still: job ")
    assert "after 60 s all is ended" in said["preemption"]["told"]


@pytest.mark.slow
def test_where_requeueing_is_refused_that_is_said_and_the_run_goes_on_otherwise_at_its_time_limit(
    terminal: Terminal, tmp_path: Path
) -> None:
    require_cgroup()
    tool = tmp_path / "scontrol"
    tool.write_text(
        '#!/bin/sh\nif [ "$1" = requeue ]; then\n'
        f'echo "Access/permission denied for job $2" >&2; exit 1; fi\nexec {shutil.which("scontrol")} "$@"\n'
    )
    tool.chmod(0o755)
    with SlurmCluster(accounting=False, grace_time_s=60, proctrack="cgroup") as cluster:
        path = f"{tmp_path}:{os.environ['PATH']}"
        login = Terminal(terminal.folder, {**terminal.environment, "SLURM_CONF": str(cluster.conf), "PATH": path})
        report = login.json("drill", "--profile", REQUEUE, timeout_s=TIMEOUT_S)
    acts = by_act(report)
    assert acts["requeued"]["refused"].endswith("failed: Access/permission denied for job " + acts["warned"]["job_id"])
    assert remarks(report)["requeue"]["differs"] is True
    assert (acts["time-limit"]["way"], remarks(report)["time limit"]["differs"]) == ("successor", True)


@pytest.mark.slow
def test_where_a_job_waits_ahead_it_goes_on_with_a_run_whose_job_was_killed(login: Terminal) -> None:
    report = login.json("drill", "--profile", SPOT, "--act", "job-killed", *ONE_RANK, timeout_s=TIMEOUT_S)
    killed = by_act(report)["job-killed"]
    assert (killed["way"], killed["stood_still"]) == ("link", "")
    assert killed["job_after"] != killed["job_id"]
    assert remarks(report)["killed job"] == {
        "topic": "killed job",
        "seen": f"The run went on in the next link, {killed['back_after_s']:.0f} s later, {killed['lost_steps']} steps "
        "lost.",
        "told": "the next link of the chain goes on",
        "source": "hpcgemma expects",
        "differs": False,
    }
