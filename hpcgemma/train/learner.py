"""What learns: the model with its strategy and optimizer, and how one optimizer step is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from hpcgemma.recipes.types import Recipe
from hpcgemma.train.adapters import add_adapters, keep_trained_weights_in_fp32
from hpcgemma.train.data.batches import MicroBatch, TrainingBatches, collate
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.loss import backward, seed_dropout, summed_loss
from hpcgemma.train.model import build_model
from hpcgemma.train.optimizers import build_optimizer, set_learning_rate
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.schedules import rate_share
from hpcgemma.train.strategies import Strategy
from hpcgemma.train.strategies.ddp import DataParallel


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
        batches: This rank's share of each step.
        ranks: All ranks.
        device: What this rank computes on.
        total_steps: Optimizer steps of the whole training.
    """

    def __init__(
        self,
        recipe: Recipe,
        prepared: PreparedData,
        batches: TrainingBatches,
        ranks: Ranks,
        device: torch.device,
        total_steps: int,
    ) -> None:
        self._recipe, self._prepared, self._batches = recipe, prepared, batches
        self._ranks, self._device, self._total_steps = ranks, device, total_steps
        model, self.attention = build_model(recipe, prepared, device)
        if recipe.lora is not None:
            model = add_adapters(model, recipe.lora, recipe.training.seed)
        keep_trained_weights_in_fp32(model)
        model.train()
        transformers_model: Any = model
        self.model = transformers_model
        """A transformers or peft model, not wrapped by the strategy."""
        if recipe.training.activation_checkpointing:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
        if recipe.training.compile:
            model.compile(dynamic=True)
        self._strategy: Strategy = DataParallel(model, device)
        self.optimizer = build_optimizer(model, recipe.optimizer)

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
            batch = next(micro_batches).to(self._device)
            is_last = place == self._batches.per_step - 1
            seed_dropout(training.seed, step, place, self._ranks.rank)
            with nullcontext() if is_last else self._strategy.adding_up():
                with self.autocast():
                    loss = summed_loss(self._strategy.model, batch)
                # DDP averages over ranks; multiplied by their number, the average is the sum.
                backward(loss * (self._ranks.world_size / targets))
            total += loss.detach().double()
        norm = self._strategy.gradient_norm(training.max_grad_norm)
        set_learning_rate(self.optimizer, self.learning_rate(step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
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
        longest = collate(prepared.train, prepared.train.longest(training.micro_batch), pad).to(self._device)
        for _ in range(2):
            with self.autocast():
                loss = summed_loss(self._strategy.model, longest)
            backward(loss)
            self.optimizer.zero_grad(set_to_none=True)
        held_out = collate(prepared.eval, prepared.eval.longest(training.eval_micro_batch), pad).to(self._device)
        with torch.no_grad(), self.autocast():
            summed_loss(self.model, held_out)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the step after so many."""
        return self._recipe.optimizer.learning_rate * rate_share(self._recipe.schedule, step, self._total_steps)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of the recipe's precision."""
        is_bf16 = self._recipe.training.precision == "bf16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=is_bf16)
