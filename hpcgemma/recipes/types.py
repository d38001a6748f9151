"""The recipe, whose sections are in files of their own; each is named here too."""

from __future__ import annotations

from pydantic import Field

from hpcgemma.configfile import Section
from hpcgemma.recipes.sections.data import DataSpec, GeneratorSpec, LanguagesSpec, MixturePart, RowFormat, TokenizerSpec
from hpcgemma.recipes.sections.evaluation import (
    EarlyStoppingSpec,
    EvaluationSpec,
    GenerationSpec,
    MonitorName,
    MonitorsSpec,
    TargetSpec,
)
from hpcgemma.recipes.sections.model import FreezeSpec, LoraSpec, ModelSpec, QuantizationSpec
from hpcgemma.recipes.sections.running import CheckpointSpec, ResourcesSpec, StrategySpec, WatchSpec
from hpcgemma.recipes.sections.training import OptimizerSpec, ScheduleSpec, TrainingSpec

__all__ = [
    "CheckpointSpec",
    "DataSpec",
    "EarlyStoppingSpec",
    "EvaluationSpec",
    "FreezeSpec",
    "GenerationSpec",
    "GeneratorSpec",
    "LanguagesSpec",
    "LoraSpec",
    "MixturePart",
    "ModelSpec",
    "MonitorName",
    "MonitorsSpec",
    "OptimizerSpec",
    "QuantizationSpec",
    "Recipe",
    "ResourcesSpec",
    "RowFormat",
    "ScheduleSpec",
    "StrategySpec",
    "TargetSpec",
    "TokenizerSpec",
    "TrainingSpec",
    "WatchSpec",
]


class Recipe(Section):
    """What a run wants."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
    """Name of the recipe, as its file is called."""
    description: str
    """One sentence: what is trained, on what."""
    model: ModelSpec
    """Which model."""
    tokenizer: TokenizerSpec = TokenizerSpec()
    """Which tokenizer."""
    lora: LoraSpec | None = None
    """Adapters; null trains all parameters."""
    data: DataSpec
    """Which rows."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """Optimizer."""
    schedule: ScheduleSpec = ScheduleSpec()
    """Learning rate over the steps."""
    training: TrainingSpec = TrainingSpec()
    """The loop."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """Evaluation."""
    monitors: MonitorsSpec | None = None
    """Measurements of attention and softcaps on the way; null: none."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """Checkpoints."""
    watch: WatchSpec = WatchSpec()
    """Ranks that hang."""
    strategy: StrategySpec = StrategySpec()
    """Spread over the GPUs."""
    resources: ResourcesSpec = ResourcesSpec()
    """What is asked of the cluster."""
    tensorboard: bool = True
    """Write TensorBoard files beside metrics.jsonl."""
