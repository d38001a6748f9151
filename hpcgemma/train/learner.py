"""What learns: how one optimizer step is taken, whatever the strategy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch.nn import functional

from hpcgemma.errors import HpcGemmaError
from hpcgemma.recipes.types import Recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.data.batches import MicroBatch, TrainingBatches, collate
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.schedules import rate_share
from hpcgemma.train.strategies import Strategy, build_strategy

_CHECKED_TOKENS = 32
_TOLERANCE_FP32 = 1e-4
_TOLERANCE_BF16 = 2e-2
"""Relative; the same arithmetic in another order stays well below, a forgotten softcap or scale well above."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step left on the device; reading it waits for the device, so that is done only to log or save."""

    summed_loss: torch.Tensor
    """Cross-entropy of this rank's learned tokens, a scalar."""
    gradient_norm: torch.Tensor
    """Norm of all ranks' gradient before clipping, a scalar."""


class Learner:
    """The model of one rank, and what changes its weights.

    Args:
        recipe: What to train.
        prepared: The data.
        folder: The run folder.
        batches: This rank's share of each step.
        ranks: All ranks.
        device: What this rank computes on.
        total_steps: Optimizer steps of the whole training.
    """

    def __init__(
        self,
        recipe: Recipe,
        prepared: PreparedData,
        folder: RunFolder,
        batches: TrainingBatches,
        ranks: Ranks,
        device: torch.device,
        total_steps: int,
    ) -> None:
        self._recipe, self._prepared, self._batches = recipe, prepared, batches
        self._ranks, self._device, self._total_steps = ranks, device, total_steps
        self.strategy: Strategy = build_strategy(recipe, prepared, folder, ranks, device, passes=batches.per_step)
        self.strategy.model.train()

    def take_step(self, step: int, micro_batches: Iterator[MicroBatch]) -> StepResult:
        """Take one optimizer step.

        Args:
            step: Optimizer steps taken before.
            micro_batches: Where this rank's next rows come from.
        """
        training = self._recipe.training
        _, targets = self._batches.tokens_of_step(step)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for place in range(self._batches.per_step):
            batch = self.strategy.shaped(next(micro_batches)).to(self._device)
            seed_dropout(training.seed, step, place, self._ranks.rank)
            with self.strategy.accumulating(is_last=place == self._batches.per_step - 1):
                loss = self.strategy.objective(*batch)
                # Strategies average over ranks; multiplied by their number, the average is the sum.
                self.strategy.backward(loss * (self._ranks.world_size / targets))
            total += loss.detach().double()
        norm = self.strategy.step(self.learning_rate(step))
        if training.empty_cache_every_steps and (step + 1) % training.empty_cache_every_steps == 0:
            torch.cuda.empty_cache()
        return StepResult(total, norm)

    def rehearse(self) -> None:
        """Take the longest rows through the model once and throw the result away.

        It shows in the first minute whether memory suffices. And it makes a resumed training equal to an
        uninterrupted one: DDP orders its buckets anew after its first backward pass, and with three or more ranks the
        order of a sum decides its last bit.
        """
        training, prepared = self._recipe.training, self._prepared
        pad = prepared.special["pad"]
        longest = collate(prepared.train, prepared.train.longest(training.micro_batch), pad)
        longest = self.strategy.shaped(longest).to(self._device)
        for _ in range(2):
            with self.strategy.accumulating(is_last=True):
                # Nothing is left of gradients that are zero, also where a strategy keeps them in buffers of its own.
                self.strategy.backward(self.strategy.objective(*longest) * 0.0)
            self.strategy.discard()
        held_out = collate(prepared.eval, prepared.eval.longest(training.eval_micro_batch), pad)
        held_out = self.strategy.shaped(held_out).to(self._device)
        with torch.no_grad():
            self.strategy.evaluated(*held_out)
        self._check_loss(held_out.ids_BT[:1, :_CHECKED_TOKENS])

    def _check_loss(self, ids_BT: torch.Tensor) -> None:
        """Compare the loss, which never sees whole logits, with that of the model's own logits.

        Raises:
            HpcGemmaError: The model does something to its logits that the loss does not know.
        """
        labels_N = ids_BT[0, 1:]
        self.strategy.model.eval()
        with torch.no_grad():
            ours = float(self.strategy.evaluated(ids_BT, torch.arange(len(labels_N), device=ids_BT.device), labels_N))
            with self.autocast(), self.strategy.generating():
                logits_BTV = self.strategy.model(input_ids=ids_BT, use_cache=False).logits
        self.strategy.model.train()
        own = float(functional.cross_entropy(logits_BTV[0, :-1].float(), labels_N, reduction="sum"))
        tolerance = _TOLERANCE_BF16 if self._recipe.training.precision == "bf16" else _TOLERANCE_FP32
        if not math.isclose(ours, own, rel_tol=tolerance):
            raise HpcGemmaError(
                f"the model's own loss on {len(labels_N)} tokens is {own:.6f}, hpcgemma's is {ours:.6f}: "
                f"{type(self.strategy.model).__name__} treats its logits in a way that is not known here",
                "train another model; please report this one as an issue",
            )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the step after so many."""
        return self._recipe.optimizer.learning_rate * rate_share(self._recipe.schedule, step, self._total_steps)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of the recipe's precision, for what calls the bare model."""
        is_bf16 = self._recipe.training.precision == "bf16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=is_bf16)


def seed_dropout(seed: int, step: int, place: int, rank: int) -> None:
    """Make the random numbers of one forward pass a pure function of its place in the training.

    So no random state need be saved, and neither an evaluation nor a resume can disturb it.

    Args:
        seed: The recipe's.
        step: Optimizer steps taken before.
        place: Which micro-batch of the step.
        rank: This rank.
    """
    mixed = 0
    for part in (seed, step, place, rank):
        mixed = (mixed * 1_000_003 + part + 1) % (1 << 63)
    torch.manual_seed(mixed)
