"""How a command that several processes were started with finds its peers."""

from __future__ import annotations

import pytest

from hpcgemma.train.commands.place import place_of
from hpcgemma.train.environment import read_environment

STEP = {
    "SLURM_JOB_ID": "2584773",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "32",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "lrdn[0012-0015,0020]",
}


def test_tasks_of_a_step_meet_on_its_first_node() -> None:
    found = place_of(STEP)
    environment = read_environment(found)
    assert (environment.rank, environment.local_rank, environment.world_size) == (5, 1, 8)
    assert found["MASTER_ADDR"] == "lrdn0012"
    assert 20000 <= int(found["MASTER_PORT"]) < 40000
    assert place_of(STEP | {"SLURM_PROCID": "6"})["MASTER_PORT"] == found["MASTER_PORT"]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node7", "node7"), ("a[1,3]-ib,b2", "a1-ib"), ("gpu-3,gpu-5", "gpu-3"), ("n[08-11]", "n08")],
)
def test_the_first_node_of_a_list_is_told(nodes: str, first: str) -> None:
    assert place_of(STEP | {"SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


def test_on_one_node_they_meet_there() -> None:
    assert place_of(STEP | {"SLURM_STEP_NUM_NODES": "1"})["MASTER_ADDR"] == "127.0.0.1"


def test_a_process_of_the_batch_script_is_alone_however_many_tasks_the_job_has() -> None:
    batch = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_NTASKS": "32"}
    assert read_environment(place_of(batch)).world_size == 1


def test_what_torchrun_says_is_taken_as_it_is() -> None:
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    assert place_of(variables | STEP) == variables | STEP
