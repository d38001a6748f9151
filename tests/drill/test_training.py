"""Where the tiny run of a drill goes, and that it needs no GPU where the profile allows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcgemma.drill.acts import Act
from hpcgemma.drill.training import RECIPE, WALLTIME, On, place_of, settings_of
from hpcgemma.errors import InputError
from hpcgemma.plan import Plan, make_plan
from hpcgemma.profiles import load_profile
from hpcgemma.recipes import load_recipe

TEST_PROFILE = str(Path(__file__).parent.parent / "profiles" / "leonardo_test.yaml")


def planned(profile_name: str, on: On = "auto", partition: str | None = None, nodes: int = 1) -> Plan:
    place = place_of(load_profile(profile_name), on, partition)
    recipe = load_recipe(RECIPE, settings_of([Act.TIME_LIMIT], ranks=place.ranks, nodes=nodes))
    return make_plan(place.profile, recipe, run_name="drill-1", run_id="0", account="demo", walltime=WALLTIME)


def test_on_leonardo_it_needs_no_gpu() -> None:
    plan = planned("leonardo")
    assert (plan.device, plan.gpus_per_node, plan.partition, plan.qos) == ("cpu", 0, "lrd_all_serial", "normal")
    assert (plan.nodes, plan.ranks_per_node, plan.cpus_per_rank, plan.memory_mb_per_node) == (1, 2, 2, 30800)
    assert plan.walltime_min == 20


@pytest.mark.parametrize(
    ("on", "partition"), [("gpu", None), ("auto", "boost_usr_prod")], ids=["by --on", "by its partition"]
)
def test_on_leonardo_it_takes_one_gpu_where_it_is_told_to(on: On, partition: str | None) -> None:
    plan = planned("leonardo", on, partition)
    assert (plan.device, plan.gpus_per_node, plan.ranks_per_node) == ("cuda", 1, 1)
    assert (plan.partition, plan.qos) == ("boost_usr_prod", "normal")


def test_a_partition_that_the_profile_does_not_name_is_taken_without_a_gpu() -> None:
    plan = planned("leonardo", partition="lrd_all_viz")
    assert (plan.device, plan.gpus_per_node, plan.partition, plan.qos) == ("cpu", 0, "lrd_all_viz", None)


def test_a_profile_without_gpus_and_this_machine_are_taken_as_they_are() -> None:
    plan = planned(TEST_PROFILE, nodes=2)
    assert (plan.device, plan.partition, plan.nodes, plan.world_size) == ("cpu", "boost_usr_prod", 2, 4)
    assert planned("local").device == "cpu"
    assert planned("local", "gpu").device == "cuda"


def test_a_place_that_is_not_there_is_refused() -> None:
    bare = load_profile("leonardo").model_copy(update={"cpu_queue": None})
    with pytest.raises(InputError, match="names no queue for jobs without a GPU"):
        place_of(bare, "cpu")
    assert place_of(bare).ranks == 1
    with pytest.raises(InputError, match="has no GPU"):
        place_of(load_profile(TEST_PROFILE), "gpu")
    with pytest.raises(InputError, match="has no partitions"):
        place_of(load_profile("local"), "auto", "boost")


def test_the_run_lives_longer_where_slurms_clock_is_waited_for() -> None:
    assert "training.max_steps=20000" in settings_of([Act.WARNED, Act.TIME_LIMIT], ranks=1, nodes=1)
    assert "training.max_steps=2000" in settings_of([Act.WARNED], ranks=1, nodes=1)
