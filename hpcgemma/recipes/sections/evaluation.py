"""What a recipe measures: held-out loss, generated answers, and what goes on inside the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from hpcgemma.configfile import Section
from hpcgemma.recipes.metrics import check_metric_names


class EarlyStoppingSpec(Section):
    """Stop when the evaluation loss no longer falls."""

    patience: int = Field(gt=0)
    """Evaluations without improvement before the end."""
    threshold: float = Field(0.0, ge=0)
    """A fall of at most this much does not count."""


class GenerationSpec(Section):
    """Answers generated for held-out rows, before and after the training, and scored against the true ones."""

    rows: int = Field(64, gt=0)
    """Held-out rows to answer."""
    max_new_tokens: int = Field(64, gt=0)
    """Tokens of an answer at most."""
    every_steps: int | None = Field(None, gt=0)
    """Steps between answers during the training; null: only before and after it."""
    min_words: int | None = Field(None, ge=0)
    """Fewest words of an answer that follows its instruction; null: half as many as the true one has."""
    max_words: int | None = Field(None, gt=0)
    """Most words of an answer that follows its instruction; null: twice as many as the true one has."""


class TargetSpec(Section):
    """What a metric is to reach; one limit at least."""

    at_least: float | None = None
    """Lowest value that meets the target."""
    at_most: float | None = None
    """Highest value that meets the target."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> TargetSpec:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a target needs at_least or at_most, such as {at_least: 20}")
        return self


class EvaluationSpec(Section):
    """How the model is judged during and after the training."""

    every_steps: int | None = Field(None, gt=0)
    """Steps between evaluations of the held-out loss; null: only at the end."""
    rows: int | None = Field(None, gt=0)
    """Held-out rows that an evaluation during the training takes, the first so many; null: all."""
    best_at_end: bool = True
    """final/ holds the weights of the lowest held-out loss, not the last ones."""
    early_stopping: EarlyStoppingSpec | None = None
    """null trains to the end."""
    generation: GenerationSpec | None = None
    """null generates nothing."""
    targets: dict[str, TargetSpec] = {}
    """What is to be reached at the end, by metric, as in {bleu4: {at_least: 20}, perplexity: {at_most: 8}}."""
    clip_model: str | None = "openai/clip-vit-base-patch16"
    """Folder or hub name of the CLIP that judges captions of SVG drawings, read from this machine's disks alone; null:
    captions get no CLIP score."""

    @field_validator("targets")
    @classmethod
    def _targets_are_metrics(cls, targets: dict[str, TargetSpec]) -> dict[str, TargetSpec]:
        check_metric_names(targets)
        return targets


MonitorName = Literal["attention_entropy", "softcap_saturation", "sliding_window"]


class MonitorsSpec(Section):
    """What is measured of a model beside its loss, on a few held-out rows, between two steps."""

    every_steps: int = Field(50, gt=0)
    """Steps between measurements; the first is made before the training, the last at its end."""
    rows: int = Field(8, gt=0)
    """Held-out rows that are measured, the first so many, one at a time. Each costs about two forward passes."""
    measure: list[MonitorName] = Field(["attention_entropy", "softcap_saturation", "sliding_window"], min_length=1)
    """attention_entropy: how many keys the heads look at; softcap_saturation: how near attention scores and logits are
    to their caps; sliding_window: how far they look, and what the window hides. What a model has not is left out."""
