"""Which strategy a run takes, and why, in a sentence. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgemma.memory import ALLOWANCE_SHARE, GIB, StrategyName, state_memory
from hpcgemma.recipes.types import Recipe, StrategySpec
from hpcgemma.shapes import ModelShape, model_parameters

ASSUMED_MEMORY_GIB = 24.0
"""What a GPU has at least, where the profile does not say: an RTX 3090, an A10, an L4."""
_OPTIMIZER_WORDS = {"adamw": "AdamW", "adamw_8bit": "8-bit AdamW", "adafactor": "Adafactor"}
_ONLY_FSDP = ("offload_parameters", "reshard_after_forward", "hybrid_shard", "prefetch_layers", "layer_class")


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy, and the sentence that says why it is this one."""

    name: StrategyName
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """The processes of a run, and the memory that each has."""

    nodes: int
    per_node: int
    memory_gib: float | None
    """Of a GPU, or of a process without one; None is not known."""
    on_gpus: bool = True
    """Whether each has a GPU."""

    @property
    def count(self) -> int:
        """All of them."""
        return self.nodes * self.per_node

    @property
    def noun(self) -> str:
        """One of them, in words."""
        return "GPU" if self.on_gpus else "process"

    @property
    def each(self) -> str:
        """All of them, in words."""
        size = f" of {self.memory_gib:.3g} GiB" if self.memory_gib else ""
        return f"each of {self.count} {'GPUs' if self.on_gpus else 'processes'}{size}"

    def hold(self, needs_gib: float) -> bool:
        """Return whether each has that much, with room for activations."""
        return needs_gib <= (1 - ALLOWANCE_SHARE) * (self.memory_gib or ASSUMED_MEMORY_GIB)


def choose_strategy(recipe: Recipe, shape: ModelShape | None, processes: Processes) -> Choice:
    """Return the strategy of a run: the recipe's own, or for `auto` ddp or fsdp.

    DDP where every process holds weights, gradients and optimizer states with room for activations; else FSDP.
    DeepSpeed and XLA are never chosen: they must be asked for.

    Args:
        recipe: What is trained.
        shape: The model's shape; None where it is not known.
        processes: What trains it.
    """
    name = recipe.strategy.name
    if name == "auto":
        return _chosen(recipe, shape, processes)
    if shape is None:
        return Choice(name, "the recipe asks for it")
    needs_gib = _needs_gib(recipe, shape, processes, name)
    if name == "ddp" and processes.count > 1 and processes.hold(needs_gib):
        return Choice(name, _everything_fits(recipe, shape, processes, needs_gib))
    where = f" on {processes.each}" if processes.count > 1 else ""
    return Choice(name, f"the recipe asks for it; {_takes(recipe, shape, needs_gib)}{where}")


def with_strategy(recipe: Recipe, name: StrategyName) -> Recipe:
    """Return the recipe with the strategy's name in it, as run.yaml keeps it: a trainer never meets `auto`."""
    return recipe.model_copy(update={"strategy": recipe.strategy.model_copy(update={"name": name})})


def _chosen(recipe: Recipe, shape: ModelShape | None, processes: Processes) -> Choice:
    if processes.count == 1:
        return Choice("ddp", "there is one process, and nothing to share")
    if recipe.optimizer.name == "adamw_8bit":
        return Choice(
            "ddp", f"the states of 8-bit AdamW cannot be sharded, so every {processes.noun} holds all of them"
        )
    wanted = [f"strategy.{name}" for name in _ONLY_FSDP if _is_set(recipe.strategy, name)]
    if wanted:
        return Choice("fsdp", f"{' and '.join(wanted)} {'is' if len(wanted) == 1 else 'are'} set, which ddp has not")
    if shape is None:
        model = recipe.model.path or f"a {recipe.model.config.get('model_type')}"
        return Choice(
            "fsdp",
            f"the size of {model} is not known here, and sharded over {processes.count} processes it needs least",
        )
    needs_gib = _needs_gib(recipe, shape, processes, "ddp")
    if processes.hold(needs_gib):
        return Choice("ddp", _everything_fits(recipe, shape, processes, needs_gib))
    if processes.memory_gib is None:
        why = f"and how much memory a {processes.noun} has is not known"
    else:
        why = f"and a {processes.noun} of {processes.memory_gib:.3g} GiB needs room for activations too"
    sharded_gib = _needs_gib(recipe, shape, processes, "fsdp")
    tight = "" if processes.hold(sharded_gib) else "; that is much still, and more of them would help"
    return Choice(
        "fsdp",
        f"{_takes(recipe, shape, needs_gib)}, {why}, so weights, gradients and optimizer states are sharded: "
        f"{_size(sharded_gib)} on {processes.each}{tight}",
    )


def _everything_fits(recipe: Recipe, shape: ModelShape, processes: Processes, needs_gib: float) -> str:
    if processes.memory_gib is None:
        of = f", which any {'GPU' if processes.on_gpus else 'machine'} has"
    else:
        of = f" of a {processes.noun}'s {processes.memory_gib:.3g} GiB"
    return (
        f"{_takes(recipe, shape, needs_gib)}{of}, so every {processes.noun} holds all of it and only gradients travel; "
        "ZeRO or FSDP would add communication and save memory that is not needed"
    )


def _needs_gib(recipe: Recipe, shape: ModelShape, processes: Processes, strategy: StrategyName) -> float:
    memory = state_memory(recipe, shape, strategy=strategy, nodes=processes.nodes, gpus_per_node=processes.per_node)
    return memory.total_bytes / GIB


def _takes(recipe: Recipe, shape: ModelShape, needs_gib: float) -> str:
    path = recipe.model.path
    model_type = shape.text.model_type if shape.vision is None else "gemma3"
    name = path.rstrip("/").rpartition("/")[2] if path else f"a {model_type}"
    bits = " in 4 bits" if recipe.model.quantization else ""
    gradients = "with its gradients" if recipe.lora is None else "with adapters, their gradients"
    return (
        f"{name} ({_count(model_parameters(shape))} parameters){bits} {gradients} and "
        f"{_OPTIMIZER_WORDS[recipe.optimizer.name]} states takes {_size(needs_gib)}"
    )


def _is_set(spec: StrategySpec, field: str) -> bool:
    return bool(getattr(spec, field) != StrategySpec.model_fields[field].default)


def _size(gib: float) -> str:
    if gib >= 100:
        return f"{gib:.0f} GiB"
    return f"{gib:.1f} GiB" if gib >= 0.1 else f"{gib * 1024:.1f} MiB"


def _count(parameters: int) -> str:
    if parameters >= 10**9:
        return f"{parameters / 1e9:.2f} B"
    return f"{parameters / 1e6:.1f} M" if parameters >= 10**6 else f"{parameters:,}"
