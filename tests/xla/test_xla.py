"""Training through torch_xla, on its CPU device. ``make test-xla`` runs these in an environment of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("torch_xla", reason="torch_xla is not installed beside this torch: make test-xla runs these")

from hpcgemma.train.anatomy import is_tied
from hpcgemma.train.data.batches import MicroBatch
from hpcgemma.train.learner import Learner, StepResult
from tests.scenario import Terminal
from tests.train.launch import Run
from tests.xla.conftest import DEADLINE_S, recipe_of, run_of, trained, with_recipe

# torch 2.9 and what is built for newer ones warn of each other.
pytestmark = pytest.mark.filterwarnings("ignore")

READS_OF_A_LOG = 2
"""Loss and gradient norm."""


def assert_close(run: Run, reference: Run) -> None:
    """Assert equal curves but for the rounding of bf16, which XLA leaves out between operations that it fuses."""
    losses, expected = run.losses(), reference.losses()
    assert losses.keys() == expected.keys()
    assert [loss for loss, _ in losses.values()] == pytest.approx([loss for loss, _ in expected.values()], rel=5e-4)
    assert [norm for _, norm in losses.values()] == pytest.approx([norm for _, norm in expected.values()], rel=5e-3)
    assert run.evaluations() == pytest.approx(reference.evaluations(), rel=5e-4)


def test_ten_steps_on_xla_have_the_losses_of_ddp(on_xla: Run, by_ddp: Run) -> None:
    first, *_, last = [loss for loss, _ in by_ddp.losses().values()]
    assert last < first - 1
    assert_close(on_xla, by_ddp)


def test_xla_says_what_it_runs_on_and_what_batches_are_filled_up_to(on_xla: Run) -> None:
    log = on_xla.log()
    assert "xla: CPU through torch_xla " in log
    assert "batches are filled up to 32 x 128 with 640 learned tokens" in log
    assert "attention: eager" in log


def test_a_resumed_training_on_xla_repeats_the_uninterrupted_one(on_xla: Run, tmp_path: Path) -> None:
    run = trained(interrupted_at_5(on_xla, tmp_path))
    assert run.first_step() == 6
    assert run.losses() == on_xla.losses()
    assert run.evaluations() == on_xla.evaluations()


def test_xla_goes_on_from_a_checkpoint_of_ddp(on_xla: Run, by_ddp: Run, tmp_path: Path) -> None:
    run = trained(with_recipe(interrupted_at_5(by_ddp, tmp_path), recipe_of("xla")))
    assert run.first_step() == 6
    assert_close(run, by_ddp)


def test_ddp_goes_on_from_a_checkpoint_of_xla(on_xla: Run, tmp_path: Path) -> None:
    run = trained(with_recipe(interrupted_at_5(on_xla, tmp_path), recipe_of("ddp")))
    assert run.first_step() == 6
    assert_close(run, on_xla)


def test_the_finished_adapters_are_those_of_the_best_checkpoint(on_xla: Run) -> None:
    evaluations = on_xla.evaluations()
    saved = on_xla.saved(min(evaluations, key=lambda step: evaluations[step]))
    final = load_file(on_xla.folder.final_dir / "adapter_model.safetensors")
    assert {name.replace(".default.", "."): each.tolist() for name, each in saved.items()} == {
        name: each.tolist() for name, each in final.items()
    }


def interrupted_at_5(run: Run, path: Path) -> Run:
    """Return a copy that has only its checkpoint of step 5."""
    copy = run.copy(path / "copy")
    shutil.rmtree(copy.folder.checkpoints_dir / "step-10")
    shutil.rmtree(copy.folder.final_dir)
    return copy


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, int]]:
    """What torch_xla has counted after each step of a training that logs each fifth, and does nothing else."""
    from torch_xla.debug import metrics

    counts: list[dict[str, int]] = []
    take_step = Learner.take_step

    def counting(self: Learner, step: int, micro_batches: Iterator[MicroBatch]) -> StepResult:
        result = take_step(self, step, micro_batches)
        compiled, found = (int(metrics.counter_value(name) or 0) for name in ("UncachedCompile", "CachedCompile"))
        reads = int((metrics.metric_data("TransferFromDeviceTime") or [0])[0])
        counts.append({"compiled": compiled, "programs": compiled + found, "reads": reads})
        return result

    settings = ["training.log_every_steps=5", "evaluation.every_steps=10", "checkpoint.every_steps=10"]
    run = run_of(tmp_path_factory.mktemp("counted") / "run", "xla", *settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "take_step", counting)
        assert run.train_here()["outcome"] == "finished", run.log()
    assert set(run.losses()) == {5, 10}
    return counts


def test_nothing_is_compiled_after_the_second_step(counted: list[dict[str, int]]) -> None:
    # The first has no optimizer state yet, and its learning rate is 0.
    assert len({each["compiled"] for each in counted[1:]}) == 1


def test_nothing_is_read_from_the_device_between_logs(counted: list[dict[str, int]]) -> None:
    reads = [each["reads"] - counted[0]["reads"] for each in counted]
    assert reads == [0] * 5 + [READS_OF_A_LOG] * 5


def test_each_pass_and_each_update_is_one_program(counted: list[dict[str, int]]) -> None:
    training = recipe_of("xla").training
    passes = training.global_batch // training.micro_batch
    assert {after["programs"] - before["programs"] for before, after in pairwise(counted)} == {passes + 1}


def test_two_cores_take_the_steps_of_one(on_xla: Run) -> None:
    def steps(cores: int) -> list[dict[str, Any]]:
        arguments = [sys.executable, "-W", "ignore", "-m", "tests.xla.cores", str(on_xla.folder.path), str(cores)]
        environment = os.environ | {"NPROC": "8"}  # threads of XLA's CPU device: a core in a sum holds one
        said = subprocess.run(
            arguments, env=environment, stdout=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=True
        )
        return [json.loads(line) for line in sorted(said.stdout.splitlines())]

    (alone,), (first, second) = steps(1), steps(2)
    assert (alone["cores"], first["cores"], second["cores"]) == (1, 2, 2)
    assert first["weights"] == second["weights"]
    assert first["norms"] == second["norms"]
    assert first["norms"] == pytest.approx(alone["norms"], rel=5e-3)


def test_a_stop_on_xla_saves_the_step_that_it_came_in(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "xla", "training.max_steps=200", "training.epochs=200")
    run.start(1)
    run.wait_for_step(2)
    run.send(signal.SIGTERM, 0)
    run.wait()
    outcome = run.outcome()
    assert (outcome["outcome"], outcome["signal"]) == ("stopped", "SIGTERM")
    assert run.checkpoints()[-1] == f"step-{outcome['step']}"


def test_the_shipped_recipe_is_submitted_to_xla_with_no_other_change_than_the_batch(terminal: Terminal) -> None:
    settings = ["strategy.name=xla", "training.global_batch=128", "training.max_steps=1", "resources.gpus_per_node=1"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    process = terminal.start(
        "submit", "--profile", "local", "--recipe", "gemma3_270m_tpu_tiny", "--name", "tpu", *arguments, "--wait"
    )
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out + err
    assert terminal.json("status", "tpu")["state"] == "COMPLETED"


def test_more_processes_than_cores_are_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "xla")
    run.start(2)
    run.wait()
    assert run.outcome()["sentence"] == (
        "strategy.name xla needs one core for each process: XLA sees 1 on CPU, and there are 2 processes"
    )


def test_tied_weights_stay_tied_on_xla(on_xla: Run) -> None:
    import torch_xla

    from hpcgemma.train.data.prepared import PreparedData
    from hpcgemma.train.model import build_model
    from hpcgemma.train.strategies.xla import move

    cpu = torch.device("cpu")
    for lora in ([], ["lora.modules_to_save=[embed_tokens, lm_head]"]):
        model = build_model(recipe_of("xla", *lora), PreparedData.open(on_xla.folder.prepared_dir), cpu).model
        names = dict(model.named_parameters())
        move(model, torch_xla.device())
        assert is_tied(model)
        assert dict(model.named_parameters()).keys() == names.keys()
        assert {each.device.type for each in [*model.parameters(), *model.buffers()]} == {"xla"}
        assert [each.requires_grad for each in model.parameters()] == [each.requires_grad for each in names.values()]
