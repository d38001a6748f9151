"""The training of one rank, from loading to the finished model. Read it from top to bottom.

All ranks run this together. They agree at each step boundary whether to stop; between two boundaries nothing
interrupts them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from hpcgemma import snapshot
from hpcgemma.errors import HpcGemmaError
from hpcgemma.recipes.fingerprint import recipe_fingerprint
from hpcgemma.recipes.libraries import library_versions
from hpcgemma.recipes.types import Recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.provenance import Provenance
from hpcgemma.train import generation
from hpcgemma.train.checkpointing import Checkpointing
from hpcgemma.train.data.batches import MicroBatch, TrainingBatches
from hpcgemma.train.data.order import total_steps
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.environment import Environment
from hpcgemma.train.evaluation import held_out_loss
from hpcgemma.train.failures import NonFiniteLossError
from hpcgemma.train.final import write_final
from hpcgemma.train.heartbeat import Heartbeat
from hpcgemma.train.introduction import introduce
from hpcgemma.train.learner import Learner, StepResult
from hpcgemma.train.metrics import MetricsLog, StepMetrics, peak_memory_gib, say
from hpcgemma.train.monitors.monitors import Monitors
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.runfile import allowed_changes
from hpcgemma.train.save_schedule import SaveSchedule
from hpcgemma.train.scoring import numbers_of, perplexity, score
from hpcgemma.train.scoring.targets import judge, sentence_of
from hpcgemma.train.signals import StopRequest, signal_name
from hpcgemma.train.start_parts import StartParts

_LAST_WAIT_S = 60.0
"""Seconds that a rank which fails gives a save that is written beside the training."""

_UNSTABLE = "in a new run, try a lower optimizer.learning_rate, a longer schedule.warmup, or training.precision=fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEnd:
    """How a training ended."""

    outcome: Literal["finished", "stopped"]
    step: int
    samples: int
    total_steps: int
    signal: str | None
    """The signal that asked for the stop."""


class Trainer:
    """One rank of one run.

    Args:
        folder: The run folder.
        run_id: Identity of the run.
        recipe: What to train.
        environment: This rank's place.
        ranks: All ranks.
        device: What this rank computes on.
        stop: The wish to stop.
        heartbeat: This rank's sign of life.
        parts: Of this rank's start; those from here on are noted in it.
    """

    def __init__(
        self,
        folder: RunFolder,
        run_id: str,
        recipe: Recipe,
        environment: Environment,
        ranks: Ranks,
        device: torch.device,
        stop: StopRequest,
        heartbeat: Heartbeat,
        parts: StartParts,
    ) -> None:
        self.folder, self.recipe, self.environment = folder, recipe, environment
        self.ranks, self.device, self.stop, self.heartbeat = ranks, device, stop, heartbeat
        self._parts = parts
        self.agreed_signal = 0
        self.result: StepResult | None = None
        self.last_log = 0.0
        self.held_out: dict[int, float] = {}  # losses of the evaluations of this attempt, by step

        self.prepared = PreparedData.open(folder.prepared_dir)
        self.batches = TrainingBatches(self.prepared, recipe, rank=ranks.rank, world_size=ranks.world_size)
        samples = self.prepared.samples
        self.total_steps = total_steps(samples.per_epoch, recipe.training, samples.unit)
        heartbeat.total_steps = self.total_steps

        self.learner = Learner(recipe, self.prepared, folder, self.batches, ranks, device, self.total_steps)
        self.strategy = self.learner.strategy
        self.checkpointing = Checkpointing(
            folder,
            ranks,
            self.strategy,
            run_id=run_id,
            recipe_fingerprint=recipe_fingerprint(recipe),
            made_with=Provenance(
                recipe=recipe,
                data=self.prepared.fingerprint,
                code=snapshot.code_hash() if ranks.is_first else None,
                libraries=library_versions(recipe),
            ),
            allowed=allowed_changes(folder),
            keep=recipe.checkpoint.keep,
            asynchronous=recipe.checkpoint.asynchronous and recipe.strategy.name != "xla",
            device=device,
        )
        self.monitors = Monitors(recipe, folder, self.strategy, self.prepared, ranks, device)
        if ranks.is_first:
            introduce(self.strategy, recipe, self.prepared, self.batches, ranks, self.total_steps, device)

    def run(self) -> TrainingEnd:
        """Train to the end, or to a stop."""
        self.heartbeat.beat("loading")
        self._parts.note("model")
        self.progress = self.checkpointing.resume(self.environment.attempt)
        self.monitors.resume(self.progress.step)
        self._parts.note("checkpoint")
        self.log = (
            MetricsLog(
                self.folder,
                self.environment.attempt,
                tensorboard=self.recipe.tensorboard,
                step=self.progress.step,
            )
            if self.ranks.is_first
            else None
        )
        try:
            return self._train()
        finally:
            self.checkpointing.abandon(_LAST_WAIT_S)
            if self.log is not None:
                self.log.close()

    def _train(self) -> TrainingEnd:
        progress = self.progress
        if not self._is_over():
            self.heartbeat.beat("rehearsing")
            self.learner.rehearse()
        self._parts.note("rehearsal")
        if self.ranks.is_first:
            parts = self._parts.seconds
            self.folder.record("training", attempt=self.environment.attempt, step=progress.step, parts=parts)
        if progress.step == 0 and not self._score_answers("untrained"):
            return self._ending("stopped")
        micro_batches = iter(self._loader())
        self.last_log = time.monotonic()
        schedule = SaveSchedule(
            self.recipe.checkpoint.every_steps,
            progress.step,
            self.folder,
            self.ranks,
            interruption_every_h=self.environment.interruption_every_h,
        )
        while True:
            # A step boundary: evaluate, save, stop. What an interrupted attempt left undone is done here first.
            reached = time.monotonic()
            is_best = False
            if self._evaluation_is_due() and not self._stop_is_agreed():
                is_best = self._evaluate()
            if self.monitors.are_due(progress.step, is_last=self._is_over()):
                self._monitor()
            if self._answers_are_due():
                self._score_answers(f"step-{progress.step}")
            stops = self._stop_is_agreed()
            if stops or self._is_over():
                self._save(must_succeed=True)
                break
            is_due = schedule.is_due(progress.step)
            if (is_due or is_best) and progress.step not in (0, self.checkpointing.saved_step):
                began = time.monotonic()
                self._save(must_succeed=False)
                schedule.note_saved(progress.step, time.monotonic() - began)
            self.last_log += time.monotonic() - reached  # the speed logged is that of the steps

            self._step(micro_batches)
            if progress.step % self.recipe.training.log_every_steps == 0 or self._is_over():
                self._log()
        return self._ending("stopped") if stops else self._finish()

    def _step(self, micro_batches: Iterator[MicroBatch]) -> None:
        """Take one optimizer step."""
        step = self.progress.step
        self.heartbeat.beat("training", step)
        self.result = self.learner.take_step(step, micro_batches)
        self.heartbeat.note_own_part(self.result.own_s, self.result.rows_s)
        self.progress.step += 1
        self.progress.samples += self.recipe.training.global_batch

    def _evaluate(self) -> bool:
        """Measure the held-out loss and return whether the weights are to be kept for it."""
        self.heartbeat.beat("evaluating")
        loss = held_out_loss(
            self.strategy,
            self.prepared,
            self.ranks,
            self.device,
            micro_batch=self.recipe.training.eval_micro_batch,
            stop_is_agreed=self._stop_is_agreed,
            limit=self.recipe.evaluation.rows,
        )
        if loss is None:
            return False
        self.held_out[self.progress.step] = loss
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"step {self.progress.step}: the held-out loss is {loss}", _UNSTABLE)
        progress, evaluation = self.progress, self.recipe.evaluation
        keep = self.recipe.checkpoint.keep_best
        place = progress.note_evaluation(loss, evaluation.early_stopping, keep=keep)
        if self.log is not None:
            self.log.write_evaluation(progress.step, progress.samples, loss)
            best = " (the lowest so far)" if place == 0 else ""
            say(f"step {progress.step:>6}/{self.total_steps} | held-out loss {loss:.4f}{best}")
            if progress.ended_early:
                say(f"early stopping: no fall in {progress.evaluations_without_fall} evaluations")
        return place is not None and evaluation.best_at_end

    def _monitor(self) -> None:
        """Measure attention and softcaps, unless a stop comes first."""
        self.heartbeat.beat("monitoring")
        reading = self.monitors.measure(self.progress.step, self._stop_is_agreed)
        if reading is not None and self.log is not None:
            self.log.write_monitors(self.progress.step, self.progress.samples, reading.numbers())
            say(f"step {self.progress.step:>6}/{self.total_steps} | {reading.summary()}")

    def _save(self, *, must_succeed: bool) -> None:
        """Save this step, unless that is done or there is nothing to lose."""
        self.checkpointing.settle()
        if self.progress.step in (0, self.checkpointing.saved_step):
            return
        self._finite_loss()  # a broken state must not replace a sound one
        self.heartbeat.beat("saving")
        if not must_succeed:
            self.checkpointing.save(self.progress)
            return
        # Of the ranks' warnings the first counts; at the end of the training no time is used up yet.
        used_s = self.ranks.highest(round(1000 * self.stop.age_s)) / 1000
        self.checkpointing.save_at_last(
            self.progress, try_for_s=self.environment.notice_s - used_s, on_refusal=self.heartbeat.beat
        )

    def _finish(self) -> TrainingEnd:
        """Turn the best weights into the finished model."""
        progress = self.progress
        best, step = progress.best_step, progress.step
        if self.recipe.evaluation.best_at_end and best is not None and best != progress.step:
            is_loaded = self.checkpointing.load_best(best)
            step = best if is_loaded else step
            if self.ranks.is_first:
                say(
                    f"final: weights of step {best}, of the lowest held-out loss ({progress.best[0][0]:.4f})"
                    if is_loaded
                    else f"WARNING: the best checkpoint, step {best}, is damaged; final: those of step {progress.step}"
                )
        if not self._score_answers("trained"):
            return self._ending("stopped")
        if self.ranks.is_first:
            self._judge(step)
        self.heartbeat.beat("finishing")
        # Adapters alone are the result of a training of adapters; else all weights are.
        weights = self.strategy.whole_weights(trained_only=self.recipe.lora is not None)
        problem: HpcGemmaError | None = None
        if self.ranks.is_first:
            try:
                dtype = torch.bfloat16 if self.recipe.training.precision == "bf16" else torch.float32
                write_final(self.folder, self.strategy.model, weights, self.prepared.tokenizer_dir, dtype)
            except HpcGemmaError as error:
                problem = error
        problem = self.ranks.from_first(problem)
        if problem is not None:
            raise problem
        return self._ending("finished")

    def _score_answers(self, when: str) -> bool:
        """Generate answers for held-out rows and score them, unless that is done; False where a stop came first.

        Args:
            when: ``untrained``, ``step-N`` or ``trained``.
        """
        evaluation = self.recipe.evaluation
        spec = evaluation.generation
        if spec is None or self.ranks.from_first(when in generation.read_scores(self.folder)):
            return True
        self.heartbeat.beat("answering")
        count = min(spec.rows, len(self.prepared.eval))
        given = generation.answers(
            self.strategy,
            generation.Speech.of(self.prepared.tokenizer_dir, self.prepared),
            [generation.Prompt.of(self.prepared.eval, row) for row in range(count)],
            self.ranks,
            self.device,
            generation.Sampling(max_new_tokens=spec.max_new_tokens),
            micro_batch=self.recipe.training.eval_micro_batch,
            autocast=self.learner.autocast,
            stop_is_agreed=self._stop_is_agreed,
        )
        if given is None:
            return False
        if self.ranks.is_first:
            asked = self.prepared.questions()[:count]
            scores = score(
                given, [reference for _, reference in asked], [prompt for prompt, _ in asked], evaluation, self.device
            )
            generation.write_scores(self.folder, when, scores)
            if self.log is not None:
                self.log.write_scores(self.progress.step, self.progress.samples, numbers_of(scores))
            say(f"{when}: BLEU-4 {scores['bleu4']}, exact match {scores['exact_match']} % of {scores['rows']} answers")
            for note in scores["notes"]:
                say(f"{when}: {note}")
        return True

    def _judge(self, step: int) -> None:
        """Add to the evaluation file the loss of the finished model, that of a step, and which targets it meets."""
        evaluation = self.recipe.evaluation
        if evaluation.generation is None and not evaluation.targets:
            return
        scores: dict[str, Any] = generation.read_scores(self.folder).get("trained", {})
        losses = {at: loss for loss, at in self.progress.best} | self.held_out
        if step in losses:
            scores |= {"eval_loss": losses[step], "perplexity": perplexity(losses[step])}
        verdicts = judge(evaluation.targets, scores)
        if verdicts:
            scores |= {"targets": verdicts}
        generation.write_scores(self.folder, "trained", scores)
        for name, verdict in verdicts.items():
            say(f"target: {sentence_of(name, verdict)}")

    def _log(self) -> None:
        """Write the step's metrics; this waits for the device."""
        progress = self.progress
        step = progress.step - 1
        tokens, targets = self.batches.tokens_of_step(step)
        loss, norm = self._finite_loss()
        if self.log is None:
            return
        now = time.monotonic()
        speed = tokens * self.recipe.training.log_every_steps / max(now - self.last_log, 1e-9)
        self.last_log = now
        self.log.write_step(
            StepMetrics(
                step=progress.step,
                total_steps=self.total_steps,
                samples=progress.samples,
                epoch=progress.samples / self.prepared.samples.per_epoch,
                loss=loss,
                learning_rate=self.learner.learning_rate(step),
                grad_norm=norm,
                tokens=tokens,
                target_tokens=targets,
                tokens_per_s=round(speed, 1),
                peak_memory_gib=peak_memory_gib(self.device),
            )
        )

    def _finite_loss(self) -> tuple[float, float]:
        """Return the last step's loss per learned token and its gradient's norm, both over all ranks.

        Raises:
            NonFiniteLossError: One of them is infinite or no number.
        """
        step = self.progress.step
        if self.result is None:
            return 0.0, 0.0  # resumed here, and what is saved was finite
        _, targets = self.batches.tokens_of_step(step - 1)
        (summed,) = self.ranks.sums([float(self.result.summed_loss)])
        loss, norm = summed / targets, float(self.result.gradient_norm)
        if math.isfinite(loss) and math.isfinite(norm):
            return loss, norm
        saved = self.checkpointing.saved_step
        where = "nothing is saved" if saved is None else f"step {saved} is saved and sound"
        raise NonFiniteLossError(
            f"step {step}: the loss is {loss}, the gradient's norm {norm}; {where}",
            _UNSTABLE,
        )

    def _loader(self) -> DataLoader[MicroBatch]:
        data = self.recipe.data
        return self.batches.from_step(
            self.progress.step, self.total_steps, workers=data.num_workers, pin=data.pin_memory
        )

    def _evaluation_is_due(self) -> bool:
        progress, every = self.progress, self.recipe.evaluation.every_steps
        if progress.step == 0 or progress.evaluated_step == progress.step:
            return False
        return progress.step == self.total_steps or (every is not None and progress.step % every == 0)

    def _answers_are_due(self) -> bool:
        spec = self.recipe.evaluation.generation
        every = None if spec is None else spec.every_steps
        return bool(every and self.progress.step and self.progress.step % every == 0 and not self._is_over())

    def _is_over(self) -> bool:
        return self.progress.step >= self.total_steps or self.progress.ended_early

    def _stop_is_agreed(self) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        self.heartbeat.beat()
        if not self.agreed_signal:
            self.agreed_signal = self.ranks.highest(self.stop.signal_number)
        return bool(self.agreed_signal)

    def _ending(self, outcome: Literal["finished", "stopped"]) -> TrainingEnd:
        return TrainingEnd(
            outcome=outcome,
            step=self.progress.step,
            samples=self.progress.samples,
            total_steps=self.total_steps,
            signal=signal_name(self.agreed_signal) if outcome == "stopped" else None,
        )
