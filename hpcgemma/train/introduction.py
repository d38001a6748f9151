"""What rank 0 says before the first step: every derived number, and why it is so."""

from __future__ import annotations

import torch

from hpcgemma.recipes.types import Recipe, TrainingSpec
from hpcgemma.train.adapters import describe_parameters
from hpcgemma.train.data.batches import TrainingBatches
from hpcgemma.train.data.order import RowStream, micro_batches_of_rank
from hpcgemma.train.data.packing import packing_counts, padding_share
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.samples import Samples
from hpcgemma.train.data.token_rows import TokenRows
from hpcgemma.train.metrics import say
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.schedules import warmup_steps
from hpcgemma.train.strategies import Strategy

_STEPS_LOOKED_AT = 50


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
    training, samples = recipe.training, prepared.samples
    say(describe_parameters(strategy.model))
    for note in strategy.notes:
        say(note)
    say(f"device: {device}, {ranks.world_size} ranks, {torch.get_num_threads()} threads each")
    say(f"precision: {training.precision}; trained weights are held in {training.trained_weights}")
    for line in describe_samples(recipe, samples, world_size=ranks.world_size, passes=batches.per_step):
        say(line)
    limit = f", at most {training.max_steps}" if training.max_steps else ""
    per_epoch = samples.per_epoch
    say(
        f"steps: {total_steps} = {training.epochs:g} epochs x {per_epoch} {samples.unit} / {training.global_batch}"
        f"{limit}; {per_epoch / training.global_batch:.1f} per epoch, warm-up "
        f"{warmup_steps(recipe.schedule, total_steps)}, then {recipe.schedule.name}"
    )


def describe_samples(recipe: Recipe, samples: Samples, *, world_size: int, passes: int) -> list[str]:
    """Return sentences on what a step takes, and what packing and weights make of the rows. Pure.

    Args:
        recipe: What is trained.
        samples: The training samples.
        world_size: Ranks.
        passes: Forward passes of each rank in a step.
    """
    training, lines = recipe.training, []
    if samples.packs is not None:
        width = recipe.data.max_length
        counts = packing_counts(samples.packs, samples.rows.lengths_N, width)
        saved = _padding_share(samples.rows, training, world_size)
        lines.append(
            f"packing: {counts.rows:,} rows in {counts.packs:,} packs of {width:,} tokens, "
            f"{counts.density:.1%} filled; without it {saved:.1%} of a batch would be padding"
        )
        places = training.global_batch * width
        lines.append(
            f"tokens per step: {training.micro_batch} x {world_size} ranks x {passes} accumulated x {width:,} = "
            f"{_thousands(places)} places"
        )
    if len(samples.parts) > 1 or samples.per_epoch != len(samples):
        each = " + ".join(f"{part.per_epoch:,} of {part.count:,} (x {part.weight:g})" for part in samples.parts)
        lines.append(f"mixture: {samples.per_epoch:,} {samples.unit} an epoch = {each}")
    lines.append(
        f"step: {training.global_batch} {samples.unit} = micro-batch {training.micro_batch} x {world_size} ranks x "
        f"{passes} accumulated"
    )
    return lines


def _padding_share(rows: TokenRows, training: TrainingSpec, world_size: int) -> float:
    """Return the share of padding in the first batches of unpacked rows."""
    stream, size = RowStream(len(rows), training.seed), training.global_batch
    steps = (stream.rows_at(step * size, size) for step in range(_STEPS_LOOKED_AT))
    options = {"rank": 0, "world_size": world_size, "micro_batch": training.micro_batch}
    return padding_share(
        rows.lengths_N,
        (batch for step in steps for batch in micro_batches_of_rank(step, rows.lengths_N, **options)),
    )


def _thousands(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{round(count / 1000):,}K"
