"""What one training computes, keeps and leaves behind. One rank, in this process, unless ranks matter."""

from __future__ import annotations

import json
import math
import re
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpcgemma import files
from hpcgemma.recipes.types import Recipe
from hpcgemma.train.data.batches import TrainingBatches
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.heartbeat import Heartbeat
from hpcgemma.train.model import build_model
from hpcgemma.train.signals import StopRequest
from tests.train.launch import Run, assert_same, recipe_with

# peft 0.21 asks transformers for a name that is to go in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

THREE_STEPS = {"training.max_steps": 3, "model.config.attention_dropout": 0.0, "evaluation.every_steps": None}


@pytest.fixture(scope="module")
def whole_batches(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three steps of one rank, each batch in one forward pass."""
    run = Run(tmp_path_factory.mktemp("whole") / "run", {**THREE_STEPS, "training.micro_batch": 8})
    assert run.train_here()["outcome"] == "finished"
    return run


def assert_close(run: Run, other: Run) -> None:
    assert run.losses().keys() == other.losses().keys()
    for step, values in run.losses().items():
        assert values == pytest.approx(other.losses()[step], rel=2e-6)
    assert run.evaluations() == pytest.approx(other.evaluations(), rel=2e-6)


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_the_loss_does_not_depend_on_the_micro_batch(whole_batches: Run, tmp_path: Path, micro_batch: int) -> None:
    run = Run(tmp_path / "run", {**THREE_STEPS, "training.micro_batch": micro_batch})
    run.train_here()
    assert_close(run, whole_batches)


def test_the_loss_does_not_depend_on_the_number_of_ranks(whole_batches: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", THREE_STEPS)
    run.train(2)
    assert_close(run, whole_batches)


def test_loss_and_gradient_are_those_of_the_plain_model(whole_batches: Run) -> None:
    recipe = Recipe.model_validate(recipe_with({**THREE_STEPS, "training.micro_batch": 8}))
    prepared = PreparedData.open(whole_batches.folder.prepared_dir)
    model = build_model(recipe, prepared, torch.device("cpu")).model
    rows = TrainingBatches(prepared, recipe, rank=0, world_size=1).rows_of_step(0)
    width = max(len(prepared.train.ids(int(row))) for row in rows)
    ids_BT = np.zeros((8, width), np.int64)
    mask_BT = np.zeros((8, width), np.int64)
    labels_BT = np.full((8, width), -100, np.int64)
    for place, row in enumerate(map(int, rows)):
        ids_T = prepared.train.ids(row)
        ids_BT[place, : len(ids_T)] = ids_T
        mask_BT[place, : len(ids_T)] = 1
        labels_BT[place, : len(ids_T)] = np.where(prepared.train.is_target(row), ids_T, -100)
    call: Any = model
    loss = call(
        input_ids=torch.from_numpy(ids_BT),
        attention_mask=torch.from_numpy(mask_BT),
        labels=torch.from_numpy(labels_BT),
    ).loss
    loss.backward()
    norm = math.sqrt(sum(float((each.grad**2).sum()) for each in model.parameters() if each.grad is not None))
    assert whole_batches.losses()[1] == pytest.approx((loss.item(), norm), rel=2e-6)


def test_the_metrics_of_a_step_are_complete(whole_batches: Run) -> None:
    line = json.loads(whole_batches.folder.metrics_file.read_text().splitlines()[1])
    prepared = PreparedData.open(whole_batches.folder.prepared_dir)
    rows = TrainingBatches(
        prepared,
        Recipe.model_validate(recipe_with({**THREE_STEPS, "training.micro_batch": 8})),
        rank=0,
        world_size=1,
    ).rows_of_step(1)
    assert line["target_tokens"] == sum(int(prepared.train.is_target(int(row)).sum()) for row in rows)
    assert line["tokens"] == sum(len(prepared.train.ids(int(row))) for row in rows)
    assert (line["step"], line["total_steps"], line["samples"], line["attempt"]) == (2, 3, 16, 1)
    assert line["epoch"] == 16 / 41
    assert line["learning_rate"] == pytest.approx(0.002 / 3)
    assert line["tokens_per_s"] > 0


def test_the_finished_model_loads_with_transformers(whole_batches: Run) -> None:
    final = str(whole_batches.folder.final_dir)
    model = AutoModelForCausalLM.from_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert tokenizer.convert_tokens_to_ids("<end_of_turn>") in model.generation_config.eos_token_id
    saved = whole_batches.saved(3)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in saved.items())


def test_a_bf16_training_computes_in_bf16_and_keeps_its_weights_in_fp32(whole_batches: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {**THREE_STEPS, "training.micro_batch": 8, "training.precision": "bf16"})
    assert run.train_here()["outcome"] == "finished"
    exact, rough = whole_batches.losses()[1][0], run.losses()[1][0]
    assert rough != exact
    assert rough == pytest.approx(exact, rel=1e-2)
    saved = run.saved(3)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    final = load_file(run.folder.final_dir / "model.safetensors")
    assert {tensor.dtype for tensor in final.values()} == {torch.bfloat16}


def test_activation_checkpointing_changes_nothing_but_memory(whole_batches: Run, tmp_path: Path) -> None:
    run = Run(
        tmp_path / "run",
        {**THREE_STEPS, "training.micro_batch": 8, "training.activation_checkpointing": True},
    )
    run.train_here()
    assert_close(run, whole_batches)


def test_batches_collated_by_worker_processes_are_the_same(whole_batches: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {**THREE_STEPS, "training.micro_batch": 8, "data.num_workers": 2})
    assert run.train(1)["outcome"] == "finished", run.log()
    assert run.losses() == whole_batches.losses()


@pytest.fixture(scope="module")
def pretrained(whole_batches: Run) -> str:
    return str(whole_batches.folder.final_dir)


def lora_changes(pretrained: str, **more: Any) -> dict[str, Any]:
    return {
        **THREE_STEPS,
        "training.micro_batch": 4,
        "model.path": pretrained,
        "model.config": {"hidden_size": 32},
        "tokenizer.train_vocab_size": None,
        "lora.rank": 4,
        "lora.alpha": 8,
        "lora.dropout": 0.1,
        "lora.modules_to_save": ["embed_tokens", "lm_head"],
        **more,
    }


def test_adapters_with_trained_embeddings_stay_tied_and_load(pretrained: str, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    run = Run(tmp_path / "run", lora_changes(pretrained))
    assert run.train_here()["outcome"] == "finished"
    saved = run.saved(3)
    whole = [name for name in saved if "modules_to_save" in name]
    assert len(whole) == 1  # one tied matrix, saved once
    assert all("lora_" in name for name in saved if name not in whole)
    model: Any = AutoPeftModelForCausalLM.from_pretrained(str(run.folder.final_dir))
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    trained: torch.Tensor = embedding.modules_to_save["default"].weight
    assert torch.equal(trained, saved[whole[0]])
    assert torch.equal(head.modules_to_save["default"].weight, trained)
    base: Any = AutoModelForCausalLM.from_pretrained(pretrained)
    assert not torch.equal(base.get_input_embeddings().weight, trained)


def test_adapters_resume_bitwise(pretrained: str, tmp_path: Path) -> None:
    changes = {**lora_changes(pretrained), "training.max_steps": 12, "checkpoint.every_steps": 5}
    reference = Run(tmp_path / "reference", changes)
    reference.train_here()
    run = reference.copy(tmp_path / "run")
    (run.folder.final_dir).rename(tmp_path / "final")
    (run.folder.checkpoints_dir / "step-12" / "trainer_state.json").unlink()
    run.train_here()
    assert run.events("resumed")[0]["step"] == 10
    assert run.losses() == reference.losses()
    final, expected = (each.folder.final_dir / "adapter_model.safetensors" for each in (run, reference))
    assert final.read_bytes() == expected.read_bytes()


def test_a_frozen_base_is_bf16_and_adapters_are_fp32(pretrained: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", lora_changes(pretrained) | {"training.precision": "bf16"})
    assert run.train_here()["outcome"] == "finished"
    saved = run.saved(3)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_weights_that_are_not_what_the_recipe_expects_are_refused(pretrained: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", lora_changes(pretrained) | {"model.config": {"hidden_size": 64}})
    outcome = run.train_here()
    assert (outcome["kind"], outcome["sentence"]) == (
        "input",
        f"model.config.hidden_size: the recipe expects 64, the weights at {pretrained!r} have 32",
    )


def test_a_loss_that_is_no_number_ends_the_run_with_advice(tmp_path: Path) -> None:
    run = Run(
        tmp_path / "run",
        {"optimizer.learning_rate": 1e30, "training.max_grad_norm": None, "schedule.warmup": 0.0},
    )
    outcome = run.train_here()
    assert (outcome["outcome"], outcome["kind"]) == ("failed", "non_finite_loss")
    assert "the loss is" in outcome["sentence"]
    assert "optimizer.learning_rate" in outcome["hint"]
    assert run.events("saved") == []


def test_early_stopping_ends_the_run_and_final_holds_the_best_weights(tmp_path: Path) -> None:
    run = Run(
        tmp_path / "run",
        {
            "optimizer.learning_rate": 0.02,
            "training.epochs": 100.0,
            "schedule.name": "constant",
            "evaluation.every_steps": 5,
            "evaluation.early_stopping": {"patience": 3, "threshold": 0.0},
        },
    )
    outcome = run.train_here()
    evaluations = run.evaluations()
    best = min(evaluations, key=lambda step: evaluations[step])
    assert outcome["outcome"] == "finished"
    assert outcome["step"] == best + 15 < outcome["total_steps"]
    final = load_file(run.folder.final_dir / "model.safetensors")
    assert all(torch.equal(tensor, final[name]) for name, tensor in run.saved(best).items())
    # A resume of the finished run finds it finished.
    again = run.copy(tmp_path / "again")
    (again.folder.final_dir).rename(tmp_path / "final")
    assert again.train_here() == outcome
    assert again.final_weights() == run.final_weights()


def test_answers_are_generated_and_scored_before_and_after(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {**THREE_STEPS, "evaluation.generation": {"rows": 5, "max_new_tokens": 8}})
    run.train(2)
    scores = json.loads(run.folder.evaluation_file.read_text())
    assert list(scores) == ["untrained", "trained"]
    for when in scores.values():
        assert when["rows"] == len(when["examples"]) == 5
        assert when["examples"][0]["reference"].startswith("a")
    before = run.folder.evaluation_file.read_bytes()
    run.train(2)  # what is scored is not scored again
    assert run.folder.evaluation_file.read_bytes() == before


@pytest.mark.parametrize("phase", ["answering", "evaluating", "monitoring"])
def test_a_stop_in_the_middle_of_a_phase_is_prompt_and_a_resume_makes_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    changes = {
        **THREE_STEPS,
        "training.max_steps": 4,
        "evaluation.every_steps": 2,
        "evaluation.generation": {"rows": 5, "max_new_tokens": 4},
        "monitors": {"every_steps": 2, "rows": 3},
    }
    reference, run = Run(tmp_path / "reference", changes), Run(tmp_path / "run", changes)
    reference.train_here()
    stop = StopRequest()
    beats = []

    def beat(self: Heartbeat, now: str | None = None, step: int | None = None) -> None:
        beats.append(now)
        # Not at the phase's begin but when its first batch is about to be computed.
        if beats[-2:] == [phase, None]:
            stop.signal_number = signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(Heartbeat, "beat", beat)
        outcome = run.train_here(stop)
    step = {"answering": 0, "evaluating": 2, "monitoring": 0}[phase]
    assert (outcome["outcome"], outcome["step"], outcome["signal"]) == ("stopped", step, "SIGTERM")
    assert run.evaluations() == {}
    assert run.train_here()["outcome"] == "finished"
    assert_same(run, reference)
    assert run.folder.evaluation_file.read_bytes() == reference.folder.evaluation_file.read_bytes()
    assert [line["step"] for line in files.read_json_lines(run.folder.monitors_file)] == [0, 2, 4]


def test_a_damaged_best_checkpoint_is_reported_and_the_last_weights_are_used(tmp_path: Path) -> None:
    changes = {
        "optimizer.learning_rate": 0.02,
        "training.epochs": 100.0,
        "schedule.name": "constant",
        "evaluation.every_steps": 5,
        "evaluation.early_stopping": {"patience": 3, "threshold": 0.0},
    }
    run = Run(tmp_path / "run", changes)
    last = run.train_here()["step"]
    best = run.folder.checkpoints_dir / f"step-{last - 15}"
    (best / "trainer_state.json").write_bytes(b"")
    run.folder.final_dir.rename(tmp_path / "final")
    assert run.train_here()["outcome"] == "finished"
    assert run.events("set_aside")[0]["checkpoint"] == f"bad-{best.name}"
    newest = run.saved(last)
    final = load_file(run.folder.final_dir / "model.safetensors")
    assert all(torch.equal(tensor, final[name]) for name, tensor in newest.items())


@pytest.mark.parametrize("key", ["model.language_model.", "language_model.model."])
def test_the_text_of_a_gemma_3_with_vision_is_loaded_whole(whole_batches: Run, tmp_path: Path, key: str) -> None:
    from safetensors.torch import save_file
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    prepared = PreparedData.open(whole_batches.folder.prepared_dir)
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 400,
    }
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    whole: Any = Gemma3ForConditionalGeneration(config)
    whole.save_pretrained(str(tmp_path))
    stored = load_file(tmp_path / "model.safetensors")
    renamed = {name.replace("language_model.model.", key): tensor for name, tensor in stored.items()}
    renamed = {name.replace("model.language_model.", key): tensor for name, tensor in renamed.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    changes = {"model.path": str(tmp_path), "model.config": {"model_type": "gemma3", "hidden_size": 32}}
    recipe = Recipe.model_validate(recipe_with(changes))
    built = build_model(recipe, prepared, torch.device("cpu"))
    model = built.model
    assert type(model).__name__ == "Gemma3ForCausalLM"
    assert built.notes[0].startswith("attention: sdpa")
    expected = whole.model.language_model.state_dict()
    loaded: Any = model
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.model.state_dict().items())


def test_weights_of_which_some_are_missing_are_refused(pretrained: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    broken = tmp_path / "broken"
    shutil.copytree(pretrained, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    run = Run(tmp_path / "run", lora_changes(str(broken)))
    assert run.train_here()["sentence"] == (
        f"the weights at {str(broken)!r} are incomplete: 1 are missing or of another shape, such as "
        "model.layers.1.mlp.up_proj.weight"
    )


def test_a_batch_that_the_ranks_cannot_share_is_refused_with_the_nearest(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"training.global_batch": 9})
    outcome = run.train_here()
    assert outcome["kind"] == "input"
    assert "training.global_batch 9 is not a multiple of 2" in outcome["sentence"]
    assert "8 or 10" in outcome["hint"]


def test_a_resume_with_another_recipe_is_refused(whole_batches: Run, tmp_path: Path) -> None:
    run = whole_batches.copy(tmp_path / "run")
    run.change({**THREE_STEPS, "training.micro_batch": 8, "optimizer.learning_rate": 0.5})
    outcome = run.train_here()
    assert outcome["kind"] == "input"
    assert outcome["sentence"] == (
        "what decides the result has changed since step 3 was saved: optimizer.learning_rate: 0.002 -> 0.5"
    )
    assert outcome["hint"] == (
        "restore it, or accept that the result changes: hpcgemma resume run --allow-change recipe"
    )


def test_a_library_that_decides_the_result_must_be_the_checkpoints_until_another_is_allowed(
    whole_batches: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = whole_batches.copy(tmp_path / "run")
    shutil.rmtree(run.folder.final_dir)
    for name in ("accelerate", "safetensors"):
        metadata = tmp_path / f"{name}-99.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    outcome = run.train_here()
    assert outcome["sentence"].startswith("what decides the result has changed since step 3 was saved: accelerate: ")
    assert outcome["sentence"].endswith(" -> 99.0")
    assert re.search(
        r"changed since step-3: safetensors: .* -> 99.0 \(does not change the result\)\n", capsys.readouterr().out
    )
    content = yaml.safe_load(run.folder.run_file.read_text())
    for step, ending in ((2, "failed"), (3, "finished")):
        content["allowed_changes"]["libraries"] = step
        run.folder.run_file.write_text(yaml.safe_dump(content))
        assert run.train_here()["outcome"] == ending


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def test_a_full_disk_in_the_middle_costs_a_checkpoint_and_at_the_end_it_is_an_error(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"training.max_steps": 15, "checkpoint.every_steps": 5})
    run.start(1, preexec_fn=limit_file_size)
    run.wait()
    outcome = run.outcome()
    assert [event["step"] for event in run.events("save_failed")] == [5, 10, 15]
    assert (outcome["outcome"], outcome["kind"]) == ("failed", "disk")
    assert "step 15 could not be saved" in outcome["sentence"]
    assert "File too large" in outcome["sentence"]
    assert run.checkpoints() == []
    assert max(run.losses()) == 15
    assert run.train_here()["outcome"] == "finished"  # there is room again


def test_tensorboard_shows_the_loss(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path / "run", {**THREE_STEPS, "training.micro_batch": 8, "tensorboard": True})
    run.train(1)
    board = EventAccumulator(str(run.folder.tensorboard_dir))
    board.Reload()
    shown = {each.step: each.value for each in board.Scalars("train/loss")}
    assert shown == pytest.approx({step: loss for step, (loss, _) in run.losses().items()})


def test_the_checkpoints_of_the_lowest_held_out_losses_are_kept(tmp_path: Path) -> None:
    changes = {
        "training.max_steps": 40,
        "optimizer.learning_rate": 0.05,
        "schedule.name": "constant",
        "evaluation.every_steps": 5,
        "checkpoint": {"every_steps": 40, "keep": 2, "keep_best": 3},
    }
    run = Run(tmp_path / "run", changes)
    run.train_here()
    losses = run.evaluations()
    lowest = sorted(losses, key=lambda step: losses[step])[:3]
    kept = {int(name.removeprefix("step-")) for name in run.checkpoints()}
    assert set(lowest) <= kept
    assert len(kept) <= 5
