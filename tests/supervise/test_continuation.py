"""A run whose chosen way on is refused takes the other one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcgemma.errors import SchedulerError
from hpcgemma.slurm.client import OrderRefused, SlurmClient
from hpcgemma.slurm.refusals import SubmitRefused
from hpcgemma.supervise.allocation import Allocation
from hpcgemma.supervise.continuation import Continued, Requeue, go_on

HERE = Allocation(job_id="7", on_slurm=True, host="node1", node_list="node1", restarts=0)


@dataclass
class Other:
    """The other way, which works or is refused."""

    refused: bool = False

    def go_on(self) -> Continued:
        if self.refused:
            raise SubmitRefused("no job may be submitted", "")
        return Continued("successor", "8")


@pytest.fixture
def requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Requeue:
    """A requeue by a scontrol that complains of what the file `complaint` says."""
    tool = tmp_path / "scontrol"
    tool.write_text(f'#!/bin/sh\ncat "{tmp_path}/complaint" >&2\nexit 1\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Requeue(HERE, SlurmClient())


def complain(tmp_path: Path, words: str) -> None:
    (tmp_path / "complaint").write_text(words + "\n")


def test_where_requeueing_is_refused_a_successor_goes_on(requeue: Requeue, tmp_path: Path) -> None:
    complain(tmp_path, "Access/permission denied for job 7")
    assert go_on(requeue, Other()) == Continued("successor", "8")
    with pytest.raises(OrderRefused, match="Access/permission denied for job 7; and no job may be submitted"):
        go_on(requeue, Other(refused=True))


def test_where_a_requeue_may_have_been_done_no_successor_is_submitted(requeue: Requeue, tmp_path: Path) -> None:
    complain(tmp_path, "slurm_load_jobs error: Socket timed out on send/recv operation")
    with pytest.raises(SchedulerError) as caught:
        go_on(requeue, Other())
    assert not isinstance(caught.value, OrderRefused)
