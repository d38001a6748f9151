"""The losses of `transformers.Trainer` on the same rows in the same order: a reference that is not ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset, SequentialSampler

from hpcgemma.recipes.types import Recipe
from hpcgemma.train.data.order import RowStream
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.model import build_model
from tests.train.launch import Run, recipe_with

STEPS = 20
CHANGES: dict[str, Any] = {
    "training.max_steps": STEPS,
    "training.micro_batch": 4,
    "model.config.attention_dropout": 0.0,
    "evaluation.every_steps": None,
    "evaluation.best_at_end": False,
}


class Rows(Dataset[dict[str, list[int]]]):
    """The rows of all steps, in our order, with the labels that transformers wants."""

    def __init__(self, prepared: PreparedData, recipe: Recipe) -> None:
        self._rows = prepared.train
        stream = RowStream(len(prepared.train), recipe.training.seed)
        self._order = stream.rows_at(0, STEPS * recipe.training.global_batch)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> dict[str, list[int]]:
        row = int(self._order[place])
        ids_T = self._rows.ids(row).astype(np.int64)
        return {"input_ids": ids_T.tolist(), "labels": np.where(self._rows.is_target(row), ids_T, -100).tolist()}


def padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def column(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])

    mask = torch.tensor([[1] * len(row["labels"]) + [0] * (longest - len(row["labels"])) for row in rows])
    return {"input_ids": column("input_ids", 0), "labels": column("labels", -100), "attention_mask": mask}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_the_loss_curve_is_that_of_the_trainer_of_transformers(tmp_path: Path, optimizer: str) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    changes = CHANGES | {"optimizer.name": optimizer}
    run = Run(tmp_path / "run", changes)
    assert run.train_here()["outcome"] == "finished"
    recipe = Recipe.model_validate(recipe_with(changes))
    prepared = PreparedData.open(run.folder.prepared_dir)
    model = build_model(recipe, prepared, torch.device("cpu")).model
    rows = Rows(prepared, recipe)
    losses: list[float] = []
    norms: list[float] = []

    class Recorder(Trainer):
        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            found: Any = super().compute_loss(*arguments, **options)
            losses.append(float(found))
            return found

        def _get_train_sampler(self, *arguments: Any) -> Any:
            return SequentialSampler(rows)

    class Norms(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if "grad_norm" in more["logs"]:
                norms.append(float(more["logs"]["grad_norm"]))

    trainer = Recorder(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "reference"),
            use_cpu=True,
            max_steps=STEPS,
            per_device_train_batch_size=recipe.training.global_batch,
            learning_rate=recipe.optimizer.learning_rate,
            weight_decay=recipe.optimizer.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=int(recipe.schedule.warmup),
            max_grad_norm=1.0,
            optim="adafactor" if optimizer == "adafactor" else "adamw_torch",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=rows,
        data_collator=padded,
        callbacks=[Norms()],
    )
    trainer.train()
    ours = list(run.losses().values())
    assert [loss for loss, _ in ours] == pytest.approx(losses, rel=1e-5)
    assert [norm for _, norm in ours] == pytest.approx(norms, rel=1e-4)
    final = load_file(run.folder.final_dir / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if name in final:
            torch.testing.assert_close(final[name], tensor, rtol=1e-4, atol=2e-6)
