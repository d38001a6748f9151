from __future__ import annotations

from typing import Any

import pytest

from hpcgemma.errors import ConfigError, InputError
from hpcgemma.plan import Plan, make_plan
from hpcgemma.profiles import load_profile, profile_names
from hpcgemma.recipes import load_recipe
from hpcgemma.recipes.batch import accumulation_steps


def plan_of(
    profile: str = "leonardo", recipe: str = "gemma2_9b_lora", settings: tuple[str, ...] = (), **given: Any
) -> Plan:
    arguments: dict[str, Any] = {"run_name": "r", "run_id": "0123456789ab", "account": "A_1", **given}
    return make_plan(load_profile(profile), load_recipe(recipe, settings), **arguments)


def problems_of(*arguments: Any, **given: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan_of(*arguments, **given)
    return [str(problem) for problem in caught.value.problems]


def test_every_shipped_profile_is_valid_and_holds_no_account() -> None:
    assert profile_names() == ["generic_slurm", "leonardo", "local"]
    for name in profile_names():
        assert load_profile(name).name == name


def test_until_slurm_was_asked_a_run_goes_on_by_successor_unless_the_profile_says_otherwise() -> None:
    assert load_profile("leonardo").continuation.mode == "auto"
    assert plan_of().continue_by == "successor"
    profile = load_profile("leonardo", ["continuation.mode=chain"])
    plan = make_plan(profile, load_recipe("gemma2_9b_lora"), run_name="r", run_id="0123456789ab", account="A_1")
    assert plan.continue_by == "chain"


def test_silent_ranks_hang_after_a_minute_or_five_where_a_step_may_compile() -> None:
    def limits(*settings: str) -> tuple[float | None, float | None]:
        plan = plan_of(settings=settings)
        return plan.silent_training_s, plan.silent_elsewhere_s

    assert limits("training.compile=false") == (60.0, 1800.0)
    assert limits("training.compile=true") == (300.0, 1800.0)
    assert limits("watch.training_s=0", "watch.elsewhere_s=null") == (None, None)


def test_leonardo_gives_each_gpu_its_cores_and_memory() -> None:
    plan = plan_of()
    assert (plan.partition, plan.qos, plan.account) == ("boost_usr_prod", "normal", "A_1")
    assert (plan.nodes, plan.ranks_per_node, plan.gpus_per_node) == (1, 2, 2)
    assert (plan.cpus_per_rank, plan.memory_mb_per_node) == (8, 246000)
    assert plan.accumulation_steps == 16
    assert plan.offline


def test_a_plan_survives_the_way_through_run_yaml() -> None:
    plan = plan_of()
    assert Plan.from_mapping(plan.as_mapping()) == plan


def test_the_default_queue_comes_first_and_a_longer_one_where_it_is_needed() -> None:
    assert plan_of().qos == "normal"
    assert plan_of(walltime="2-00:00:00").qos == "boost_qos_lprod"
    assert plan_of(settings=("resources.nodes=128", "training.global_batch=256")).qos == "boost_qos_bprod"


def test_more_gpus_than_a_node_has_names_the_limit_and_the_way_out() -> None:
    assert problems_of(settings=("resources.gpus_per_node=8",)) == [
        "recipe 'gemma2_9b_lora': resources.gpus_per_node: asks for 8 GPUs a node; 'leonardo' has 4 "
        "(--set resources.gpus_per_node=4 --set resources.nodes=2)"
    ]


def test_more_time_than_any_queue_gives_lists_what_each_gives() -> None:
    assert problems_of(walltime="10-0") == [
        "profile 'leonardo': queues: no queue takes 1 nodes for 10-00:00:00 (prod: at most 1-00:00:00; "
        "long: at most 4-00:00:00; big: at most 1-00:00:00; debug: at most 00:30:00)"
    ]


def test_more_memory_than_a_node_has_names_what_fits() -> None:
    assert problems_of(settings=("resources.memory_per_gpu_mb=300000",)) == [
        "recipe 'gemma2_9b_lora': resources.memory_per_gpu_mb: 300000 MB x 2 GPUs; a node of 'leonardo' gives at "
        "most 494000 MB (--set resources.memory_per_gpu_mb=247000)"
    ]


def test_a_missing_account_says_where_one_can_come_from() -> None:
    assert problems_of(account=None) == [
        "profile 'leonardo': account: this site needs an account and none was given (--account NAME, or "
        "HPCGEMMA_ACCOUNT, or accounts.leonardo in config.yaml; `saldo -b` lists yours)"
    ]


HOSTILE = ["a b", "a;b", "$(id)", "`id`", "a\nb", "a\\b", "a'b", 'a"b', "", "-x", "a#b", "é", "x" * 101]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_run_name_that_could_break_out_is_refused(text: str) -> None:
    assert problems_of(run_name=text)[0].startswith(f"--name: {text!r} is not a run name")


@pytest.mark.parametrize("text", HOSTILE)
def test_an_account_that_could_break_out_is_refused(text: str) -> None:
    assert problems_of(account=text)[0].startswith(f"--account: {text!r} is not an account")


def test_a_walltime_shorter_than_the_warning_lead_is_refused() -> None:
    assert "not longer than the warning lead of 300 s" in problems_of(walltime="5")[0]


def test_several_nodes_on_one_machine_are_refused() -> None:
    assert problems_of("local", "svg_captions_tiny", ("resources.nodes=2",))[0].startswith(
        "recipe 'svg_captions_tiny': resources.nodes: asks for 2 nodes; 'local' is one machine"
    )


def test_all_problems_come_at_once() -> None:
    assert len(problems_of(account=None, run_name="a b", walltime="never", settings=("training.global_batch=33",))) == 4


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "world_size", "steps"), [(32, 1, 2, 16), (16, 16, 1, 1), (64, 8, 8, 1)]
)
def test_accumulation_is_what_is_left_of_the_global_batch(
    global_batch: int, micro_batch: int, world_size: int, steps: int
) -> None:
    found = accumulation_steps(global_batch=global_batch, micro_batch=micro_batch, world_size=world_size)
    assert found == steps


def test_a_global_batch_that_does_not_divide_names_the_nearest_that_do() -> None:
    with pytest.raises(InputError) as caught:
        accumulation_steps(global_batch=33, micro_batch=4, world_size=4)
    assert "training.global_batch 33 is not a multiple of 16 (micro_batch 4 x 4 ranks)" in caught.value.problem
    assert "32 or 48" in caught.value.hint
