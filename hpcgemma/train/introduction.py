"""What rank 0 says before the first step: every derived number, and why it is so."""

from __future__ import annotations

import torch

from hpcgemma.recipes.types import Recipe
from hpcgemma.train.adapters import describe_parameters
from hpcgemma.train.data.batches import TrainingBatches
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.metrics import say
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.schedules import warmup_steps
from hpcgemma.train.strategies import Strategy


def introduce(
    strategy: Strategy,
    recipe: Recipe,
    prepared: PreparedData,
    batches: TrainingBatches,
    ranks: Ranks,
    total_steps: int,
    device: torch.device,
) -> None:
    """Print parameters, attention, device, precision and the arithmetic of the steps.

    Args:
        strategy: The model, spread over the ranks.
        recipe: What is trained.
        prepared: The rows.
        batches: How they are split.
        ranks: All ranks.
        total_steps: Optimizer steps of the whole training.
        device: What this rank computes on.
    """
    training, rows = recipe.training, len(prepared.train)
    say(describe_parameters(strategy.model))
    for note in strategy.notes:
        say(note)
    say(f"device: {device}, {ranks.world_size} ranks, {torch.get_num_threads()} threads each")
    say(f"precision: {training.precision}; trained weights are held in {training.trained_weights}")
    say(
        f"step: {training.global_batch} rows = micro-batch {training.micro_batch} x {ranks.world_size} ranks x "
        f"{batches.per_step} accumulated"
    )
    limit = f", at most {training.max_steps}" if training.max_steps else ""
    say(
        f"steps: {total_steps} = {training.epochs:g} epochs x {rows} rows / {training.global_batch}{limit}; "
        f"{rows / training.global_batch:.1f} per epoch, warm-up {warmup_steps(recipe.schedule, total_steps)}, "
        f"then {recipe.schedule.name}"
    )
