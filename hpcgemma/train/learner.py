"""What learns: how one optimizer step is taken, whatever the strategy."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from hpcgemma.errors import HpcGemmaError
from hpcgemma.recipes.types import Recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.data.batches import MicroBatch, TrainingBatches, collate, collate_packs
from hpcgemma.train.data.packing import Packs
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.schedules import rate_share
from hpcgemma.train.strategies import Strategy, build_strategy

_CHECKED_TOKENS = 32
_TOLERANCE_FP32 = 1e-4
_TOLERANCE_BF16 = 2e-2
"""Relative; the same arithmetic in another order stays well below, a forgotten softcap or scale well above."""
_LEAK_FP32 = 1e-6
_LEAK_BF16 = 1e-3
"""Relative; how much the loss of a packed row may change with the rows before it. Where all is well nothing changes,
but with experts, whose tokens are grouped."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step left on the device; reading it waits for the device, so that is done only to log or save."""

    summed_loss: torch.Tensor
    """Cross-entropy of this rank's learned tokens, a scalar."""
    gradient_norm: torch.Tensor
    """Norm of all ranks' gradient before clipping, a scalar."""
    own_s: float
    """Seconds up to the last backward pass, in which gradients are exchanged; the device may be behind."""
    rows_s: float
    """Seconds among them in which rows were waited for."""


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
        began = time.monotonic()
        own_s = rows_s = 0.0
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for place in range(self._batches.per_step):
            asked = time.monotonic()
            batch = self.strategy.shaped(next(micro_batches)).to(self._device)
            rows_s += time.monotonic() - asked
            seed_dropout(training.seed, step, place, self._ranks.rank)
            with self.strategy.accumulating(is_last=place == self._batches.per_step - 1):
                loss = self.strategy.objective(*batch)
                own_s = time.monotonic() - began
                # Strategies average over ranks; multiplied by their number, the average is the sum.
                self.strategy.backward(loss * (self._ranks.world_size / targets))
            total += loss.detach().double()
        norm = self.strategy.step(self.learning_rate(step))
        if training.empty_cache_every_steps and (step + 1) % training.empty_cache_every_steps == 0:
            torch.cuda.empty_cache()
        return StepResult(total, norm, own_s, rows_s)

    def rehearse(self) -> None:
        """Take the longest samples through the model once and throw the result away.

        It shows in the first minute whether memory suffices. And it makes a resumed training equal to an
        uninterrupted one: DDP orders its buckets anew after its first backward pass, and with three or more ranks the
        order of a sum decides its last bit.
        """
        training, prepared = self._recipe.training, self._prepared
        pad = prepared.special["pad"]
        longest = self._batches.collate(prepared.samples.longest(training.micro_batch))
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
        if prepared.samples.packs is not None:
            self._check_packing(prepared.samples.packs)

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

    def _check_packing(self, packs: Packs) -> None:
        """Compare the loss of a pack with that of its rows, each alone; and let no row see those before it.

        All ranks take the same pack, of as few rows as there are.

        Raises:
            HpcGemmaError: The model's attention lets packed rows see each other.
        """
        counts_S = np.diff(packs.offsets_S1)
        if not (counts_S > 1).any():
            return
        rows = packs.rows_of(int(np.argmin(np.where(counts_S > 1, counts_S, counts_S.max() + 1))))
        train, pad = self._prepared.train, self._prepared.special["pad"]
        pack = collate_packs(train, [rows], self._recipe.data.max_length, pad)
        end = int(train.lengths_N[rows[:-1]].sum())
        in_last = pack.positions_N >= end
        last = pack._replace(positions_N=pack.positions_N[in_last], labels_N=pack.labels_N[in_last])
        other_ids = pack.ids_BT.clone()
        other_ids[:, :end] = other_ids[:, :end].flip(1)
        other = last._replace(ids_BT=other_ids)
        alone = [collate(train, np.asarray([row]), pad) for row in rows]
        self.strategy.model.eval()
        packed, seen, unseen, *each = (self._evaluated(batch) for batch in (pack, last, other, *alone))
        self.strategy.model.train()
        is_bf16 = self._recipe.training.precision == "bf16"
        tolerance, leak = (_TOLERANCE_BF16, _LEAK_BF16) if is_bf16 else (_TOLERANCE_FP32, _LEAK_FP32)
        if not math.isclose(packed, sum(each), rel_tol=tolerance) or not math.isclose(seen, unseen, rel_tol=leak):
            raise HpcGemmaError(
                f"{type(self.strategy.model).__name__}'s attention lets packed rows see each other: the loss of "
                f"{len(rows)} rows in one pack is {packed:.6f}, that of each alone adds up to {sum(each):.6f}; the "
                f"last one's changes from {seen:.6f} to {unseen:.6f} with the rows before it",
                "--set data.packing=false",
            )

    def _evaluated(self, batch: MicroBatch) -> float:
        with torch.no_grad():
            return float(self.strategy.evaluated(*self.strategy.shaped(batch).to(self._device)))

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
