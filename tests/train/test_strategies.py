"""Every strategy trains the same model: the same losses, the same checkpoints, the same finished weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.shared import made_once
from tests.train.launch import Run

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy.name": "ddp"},
    "fsdp": {"strategy.name": "fsdp"},
    "zero-1": {"strategy.name": "deepspeed", "strategy.zero_stage": 1},
    "zero-2": {"strategy.name": "deepspeed", "strategy.zero_stage": 2},
    "zero-3": {"strategy.name": "deepspeed", "strategy.zero_stage": 3},
}
TWENTY_STEPS = {
    "training.max_steps": 20,
    "model.config.attention_dropout": 0.0,
    "evaluation.every_steps": 10,
    "checkpoint.every_steps": 10,
}
TOLERANCE = 1e-5
"""Relative, on each loss and each gradient's norm."""


def slow(*values: Any) -> Any:
    """Return parameters that only `make test-slow` tests: the rest of a matrix whose corners are always run."""
    return pytest.param(*values, marks=pytest.mark.slow)


class Bench:
    """One training of each kind on one process, which the others are compared with; the tests' workers share them."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self.reference = cache(self._reference)
        self._trained = cache(self._train)

    def recipe(self, kind: str) -> dict[str, Any]:
        """Return what a kind of training changes in the tiny recipe."""
        if kind == "full":
            return TWENTY_STEPS
        if kind == "adafactor":
            return TWENTY_STEPS | {"optimizer.name": "adafactor"}
        pretrained = {
            "model.path": str(self.reference("full").folder.final_dir),
            "model.config": {"hidden_size": 32},
            "tokenizer.train_vocab_size": None,
        }
        changes: dict[str, dict[str, Any]] = {
            "continued": pretrained,
            "lora": {
                **pretrained,
                "lora.rank": 4,
                "lora.alpha": 8,
                "lora.modules_to_save": ["embed_tokens", "lm_head"],
            },
            "qlora": {**pretrained, "lora.rank": 4, "lora.alpha": 8, "model.quantization": {}},
        }
        return TWENTY_STEPS | changes[kind]

    def _reference(self, kind: str) -> Run:
        recipe = self.recipe(kind)

        def make(folder: Path) -> None:
            assert Run(folder / "run", recipe).train_here()["outcome"] == "finished"

        return Run(made_once(self._factory, f"{kind}-one", make) / "run")

    def run(self, kind: str, strategy: str, ranks: int = 2) -> Run:
        """Return a finished training of a kind under a strategy."""
        return self._trained(kind, strategy, ranks)

    def _train(self, kind: str, strategy: str, ranks: int) -> Run:
        reference = self.reference(kind)

        def make(folder: Path) -> None:
            run = Run(folder / "run", self.recipe(kind) | STRATEGIES[strategy])
            shutil.copytree(reference.folder.prepared_dir, run.folder.prepared_dir)
            assert run.train(ranks)["outcome"] == "finished", run.log()

        return Run(made_once(self._factory, f"{kind}-{strategy}-{ranks}", make) / "run")

    def halfway(self, run: Run, path: Path, changes: Mapping[str, Any]) -> Run:
        """Return a copy of a run as it was at step 10, under another strategy."""
        other = run.copy(path)
        shutil.rmtree(other.folder.final_dir)
        shutil.rmtree(other.folder.checkpoints_dir / "step-20")
        other.change(changes)
        return other


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory)


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def assert_equal_up_to_rounding(run: Run, reference: Run) -> None:
    assert run.losses().keys() == reference.losses().keys()
    for step, values in run.losses().items():
        assert values == pytest.approx(reference.losses()[step], rel=TOLERANCE), f"step {step}"
    assert run.evaluations() == pytest.approx(reference.evaluations(), rel=TOLERANCE)


def final_of(run: Run) -> dict[str, torch.Tensor]:
    (path,) = run.folder.final_dir.glob("*model.safetensors")
    return load_file(path)


@pytest.mark.parametrize("kind", ["full", "lora", "adafactor"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_have_the_losses_and_weights_of_one_process(bench: Bench, kind: str, strategy: str) -> None:
    reference, run = bench.reference(kind), bench.run(kind, strategy)
    assert_equal_up_to_rounding(run, reference)
    weights, expected = final_of(run), final_of(reference)
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero-1", "zero-2"])
def test_adapters_on_weights_in_4_bits_train_alike_and_resume(bench: Bench, tmp_path: Path, strategy: str) -> None:
    run = bench.run("qlora", strategy)
    assert_equal_up_to_rounding(run, bench.reference("qlora"))
    again = bench.halfway(run, tmp_path / "run", bench.recipe("qlora") | STRATEGIES[strategy])
    assert again.train(2)["outcome"] == "finished", again.log()
    assert again.losses() == run.losses()
    adapters = final_of(run)
    assert len(adapters) == 2 * 2 * 7  # two layers, seven projections
    assert all(torch.equal(tensor, adapters[name]) for name, tensor in final_of(again).items())
    assert all(tensor.count_nonzero() for tensor in adapters.values())


@pytest.mark.parametrize("strategy", ["fsdp", "zero-3"])
def test_pretrained_weights_that_are_split_while_they_are_loaded_are_the_same(bench: Bench, strategy: str) -> None:
    assert_equal_up_to_rounding(bench.run("continued", strategy), bench.reference("continued"))


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        *(("full", name) for name in STRATEGIES if name != "ddp"),  # that of ddp is in test_resume_is_exact.py
        *(("adafactor", name) for name in ("fsdp", "zero-3")),
        *(("lora", name) for name in ("fsdp", "zero-3")),
        *(slow("adafactor", name) for name in ("ddp", "zero-1", "zero-2")),
        *(slow("lora", name) for name in ("ddp", "zero-1", "zero-2")),
    ],
)
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_by_bit(
    bench: Bench, tmp_path: Path, kind: str, strategy: str
) -> None:
    run = bench.run(kind, strategy)
    again = bench.halfway(run, tmp_path / "run", bench.recipe(kind) | STRATEGIES[strategy])
    assert again.train(2)["outcome"] == "finished", again.log()
    assert again.events("resumed")[0]["step"] == 10
    assert again.losses() == run.losses()
    assert again.evaluations() == run.evaluations()
    weights, expected = final_of(again), final_of(run)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("kind", "before", "ranks_before", "after", "ranks"),
    [
        ("full", "fsdp", 2, "fsdp", 4),
        ("full", "fsdp", 4, "ddp", 1),
        ("full", "zero-2", 2, "zero-2", 4),
        ("full", "zero-3", 2, "zero-3", 4),
        ("full", "ddp", 2, "fsdp", 2),
        ("full", "fsdp", 2, "zero-3", 2),
        ("adafactor", "zero-3", 2, "fsdp", 2),
        ("adafactor", "fsdp", 2, "ddp", 1),
        ("lora", "zero-3", 2, "fsdp", 2),
        ("lora", "fsdp", 2, "ddp", 1),
        ("qlora", "zero-2", 2, "fsdp", 2),
        slow("full", "zero-1", 2, "ddp", 1),
        slow("full", "zero-3", 2, "ddp", 2),
        slow("full", "zero-2", 4, "zero-2", 1),
        slow("full", "zero-3", 4, "zero-3", 1),
        slow("adafactor", "ddp", 2, "zero-2", 2),
        slow("adafactor", "zero-1", 2, "zero-1", 4),
        slow("lora", "zero-1", 2, "zero-1", 4),
        slow("lora", "zero-2", 2, "zero-2", 4),
        slow("lora", "ddp", 2, "ddp", 1),
        slow("qlora", "fsdp", 2, "ddp", 1),
        slow("qlora", "zero-1", 2, "ddp", 1),
        slow("qlora", "ddp", 2, "fsdp", 4),
    ],
)
def test_another_number_of_ranks_or_another_strategy_goes_on_where_it_was(
    bench: Bench, tmp_path: Path, kind: str, before: str, ranks_before: int, after: str, ranks: int
) -> None:
    run = bench.run(kind, before, ranks_before)
    other = bench.halfway(run, tmp_path / "run", bench.recipe(kind) | STRATEGIES[after])
    assert other.train(ranks)["outcome"] == "finished", other.log()
    assert other.events("resumed")[0]["samples"] == 80
    assert_equal_up_to_rounding(other, run)


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("fsdp", {"training.activation_checkpointing": True}),
        ("fsdp", {"strategy.offload_parameters": True, "strategy.reshard_after_forward": False}),
        ("zero-2", {"strategy.offload_optimizer": True, "strategy.reduce_bucket_size": 1000}),
        ("zero-3", {"strategy.offload_optimizer": True, "strategy.offload_parameters": True}),
        ("zero-3", {"training.activation_checkpointing": True}),
    ],
    ids=["fsdp-checkpointing", "fsdp-offload", "zero-2-offload", "zero-3-offload", "zero-3-checkpointing"],
)
def test_what_saves_memory_does_not_change_the_losses(
    bench: Bench, tmp_path: Path, strategy: str, changes: dict[str, Any]
) -> None:
    run = Run(tmp_path / "run", bench.recipe("full") | STRATEGIES[strategy] | changes)
    assert run.train(2)["outcome"] == "finished", run.log()
    assert_equal_up_to_rounding(run, bench.reference("full"))


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("lora", "fsdp"),
        ("lora", "zero-3"),
        ("continued", "zero-3"),
        *(slow("lora", name) for name in ("ddp", "zero-1", "zero-2")),
        *(slow("continued", name) for name in ("ddp", "fsdp", "zero-1", "zero-2")),
    ],
)
def test_bf16_trains_alike_up_to_its_precision(bench: Bench, tmp_path: Path, kind: str, strategy: str) -> None:
    changes = {"training.precision": "bf16", "training.max_steps": 4}
    run = Run(tmp_path / "run", bench.recipe(kind) | STRATEGIES[strategy] | changes)
    assert run.train(2)["outcome"] == "finished", run.log()
    for step, (loss, _) in run.losses().items():
        assert loss == pytest.approx(bench.reference(kind).losses()[step][0], rel=1e-2)


@pytest.mark.parametrize("strategy", ["fsdp", "zero-3"])
def test_a_head_apart_from_the_embeddings_is_trained_and_written(tmp_path: Path, strategy: str) -> None:
    changes = {
        "training.max_steps": 4,
        "evaluation.every_steps": None,
        "model.config": {
            "model_type": "qwen2",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
        },
    }
    alone, run = Run(tmp_path / "alone", changes), Run(tmp_path / "run", changes | STRATEGIES[strategy])
    alone.train_here()
    assert run.train(2)["outcome"] == "finished", run.log()
    weights, expected = final_of(run), final_of(alone)
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=2e-6, msg=name)


def test_hybrid_sharding_over_two_nodes_has_the_same_losses(bench: Bench, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", bench.recipe("full") | STRATEGIES["fsdp"] | {"strategy.hybrid_shard": True})
    run.ranks_per_node = 2
    assert run.train(4)["outcome"] == "finished", run.log()
    assert_equal_up_to_rounding(run, bench.reference("full"))


def test_fsdp_with_one_process_is_refused(tmp_path: Path) -> None:
    outcome = Run(tmp_path / "run", STRATEGIES["fsdp"]).train_here()
    assert outcome["kind"] == "input"
    assert outcome["sentence"].startswith("strategy.name fsdp needs at least two processes")


@pytest.mark.parametrize("strategy", ["fsdp", "zero-3"])
def test_sharded_ranks_with_unequal_work_evaluate_and_answer_together(
    bench: Bench, tmp_path: Path, strategy: str
) -> None:
    changes = {"training.max_steps": 2, "evaluation.generation": {"rows": 3, "max_new_tokens": 4}}
    run = Run(tmp_path / "run", bench.recipe("full") | changes | STRATEGIES[strategy])
    assert run.train(2)["outcome"] == "finished", run.log()
    alone = Run(tmp_path / "alone", bench.recipe("full") | changes)
    alone.train_here()
    found, expected = (json.loads(each.folder.evaluation_file.read_text()) for each in (run, alone))
    for name in ("eval_loss", "perplexity"):
        assert found["trained"].pop(name) == pytest.approx(expected["trained"].pop(name), rel=1e-5)
    assert found == expected


def test_deepspeeds_configuration_is_in_the_run_folder(bench: Bench) -> None:
    config = json.loads((bench.run("full", "zero-2").folder.path / "deepspeed.json").read_text())
    trained = sum(tensor.numel() for tensor in final_of(bench.reference("full")).values())
    assert config == {
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": False},
        "zero_optimization": {
            "stage": 2,
            "contiguous_gradients": True,
            "reduce_bucket_size": trained,
            "allgather_bucket_size": trained,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 60,
    }


def test_a_checkpoint_holds_no_pickle_and_one_file_of_each_rank(bench: Bench) -> None:
    for strategy in STRATEGIES:
        state = bench.run("full", strategy).folder.checkpoints_dir / "step-20" / "state"
        assert sorted(path.name for path in state.iterdir()) == [
            f"shard-{rank:05d}-model-00001-of-00001.safetensors" for rank in (1, 2)
        ]
