"""Rows 6, 7, 8 and 23: nodes are lost, their daemon restarts, their memory is full, their GPU is gone."""

from __future__ import annotations

import time

from tests.scenario import wait_until
from tests.slurm.login import SUCCESSOR, nodes_of, run_ids
from tests.slurm.lost_gpu import SENTENCE, LostGpu

from .lab import Lab
from .observation import Observation


def node_lost(lab: Lab) -> Observation:
    """A node without the batch shell is lost with all that ran there."""
    return _lost(lab, "node-lost", place=-1)


def batch_host_lost(lab: Lab) -> Observation:
    """The node of the batch shell is lost, and with it the supervisor."""
    return _lost(lab, "batch-host-lost", place=0)


def _lost(lab: Lab, name: str, *, place: int) -> Observation:
    cluster = lab.configure(slurmd_timeout_s=10)
    run = lab.submit(name)
    run.wait_for_step(30)
    names = cluster.run("scontrol", "show", "hostnames", nodes_of(cluster, run.job_id)).stdout.split()
    lost = names[place]
    fault = time.time()
    cluster.kill_node(lost)
    try:
        happened = f"the run went on without {'the batch host' if place == 0 else 'the node'}, by Slurm's requeue"
        seen = lab.completed(run, happened, [fault], lost=95)
        assert set(run_ids(run, "started")) == {run.job_id}
        assert lost not in str(run.events("started")[-1]["node_list"])
    finally:
        cluster.start_node(lost)
    return seen


def gpu_lost(lab: Lab) -> Observation:
    """A node has lost its GPU before the ranks start."""
    fault = time.time()
    run = lab.submit("gpu-lost", environment=LostGpu(lab.folder).environment)
    try:
        seen = lab.completed(run, "found before the ranks started; went on in a job without that node", [fault])
        ended = run.events("ended")[0]
        assert (ended["ending"], ended["sentence"]) == ("sick_node", SENTENCE)
        assert run.events("continued")[0]["without"] == ["node2"]
        assert len(run.events("started")) == 1
        [held] = lab.login.json("nodes", "--profile", SUCCESSOR)
        assert (held["node"], len(held["strikes"])) == ("node2", 1)
    finally:
        lab.login.call("nodes", "--profile", SUCCESSOR, "--forget", "node2")
    return seen


def slurmd_restarted(lab: Lab) -> Observation:
    """slurmd of the batch host restarts, as in an update of Slurm."""
    run = lab.submit("slurmd-restarted")
    run.wait_for_step(20)
    run.freeze()
    host = lab.cluster.run("scontrol", "show", "hostnames", nodes_of(lab.cluster, run.job_id)).stdout.split()[0]
    fault = time.time()
    lab.cluster.restart_slurmd(host)
    lab.cluster.wait_for(lambda: _state_of(lab, host) in ("ALLOCATED", "MIXED"), "slurmd to be back")
    run.thaw()
    seen = lab.completed(run, "no interruption", [fault])
    assert len(run.events("started")) == 1
    return seen


def _state_of(lab: Lab, node: str) -> str:
    return lab.cluster.run("sinfo", "-h", "-n", node, "-o", "%T").stdout.split()[0].upper()


def memory_full(lab: Lab) -> Observation:
    """The ranks need more memory than the job asked for, and the site enforces that."""
    lab.configure(memory_limits=True)
    run = lab.submit("memory-full", profile=lab.profile("small_memory", request=_SMALL))
    fault = time.time()
    said = wait_until("the end", lambda: (said := run.status())["state"] not in ("PENDING", "RUNNING") and said)
    assert "memory" in said["sentence"], said
    assert len(run.events("started")) <= 1, "it is not tried again: it would end in the same way"
    noticed_s = next((event["time"] - fault for event in run.events() if event["event"] in ("ended", "failed")), None)
    return Observation(happened=f"{said['state']}, not tried again: {said['sentence']}", noticed_s=noticed_s)


_SMALL = {"cpus_per_gpu": 1, "memory_per_gpu_mb": 300}
