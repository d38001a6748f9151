"""How a recipe runs: what it asks of a cluster, how the work is spread, saved and watched."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from hpcgemma.configfile import Section, Walltime


class CheckpointSpec(Section):
    """When the state is saved, and how much of it is kept."""

    every_steps: int | Literal["auto"] = "auto"
    """Steps between checkpoints; at most this much is computed again after a crash. auto: what loses the least time, by
    the measured cost of a save and how often something ends the run without warning (continuation of the profile)."""
    keep: int = Field(2, ge=2)
    """Newest checkpoints kept, beside the best ones. Never below two."""
    keep_best: int = Field(1, ge=1)
    """Checkpoints of the lowest held-out losses kept; one that is among them is saved whenever it comes."""
    asynchronous: bool = False
    """Write checkpoints beside the training, from a copy in host memory, which holds the saved state once more; at a
    stop and at the end the training waits. Under xla it always waits."""

    @field_validator("every_steps", mode="before")
    @classmethod
    def _is_steps_or_auto(cls, value: Any) -> Any:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError("is neither auto nor a number of steps")
        return value


class WatchSpec(Section):
    """When silent ranks are taken to hang: their stacks are written, they are killed and started again."""

    training_s: float | None = Field(60.0, ge=0)
    """Seconds without a step after which ranks that train are taken to hang; five times the 99th percentile of a step's
    time where that is longer, and at least 300 s where steps are compiled. null or 0: never."""
    elsewhere_s: float | None = Field(1800.0, ge=0)
    """The same in any other phase, such as loading, compiling, evaluating or saving, up to the first steps, and while
    the data are prepared. null or 0: never."""


class StrategySpec(Section):
    """How the work is spread over the GPUs."""

    name: Literal["auto", "ddp", "fsdp", "deepspeed", "xla"] = "auto"
    """ddp: a whole copy on each GPU; fsdp: weights, gradients and optimizer sharded by torch; deepspeed: sharded by
    ZeRO; xla: a copy on each TPU core; auto chooses ddp or fsdp and says why."""
    zero_stage: Literal[1, 2, 3] | None = None
    """What ZeRO shards: 1 optimizer, 2 and gradients, 3 and weights. Only for deepspeed."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory. Only for deepspeed; fsdp offloads it with the parameters."""
    offload_parameters: bool = False
    """Keep sharded parameters in host memory. Only for fsdp, and for deepspeed with zero_stage 3."""
    reduce_bucket_size: int | None = Field(None, gt=0)
    """Elements reduced at once. Only for deepspeed."""
    allgather_bucket_size: int | None = Field(None, gt=0)
    """Elements gathered at once. Only for deepspeed."""
    reshard_after_forward: bool = True
    """Free a layer's gathered weights between forward and backward: less memory, one gathering more. Only for fsdp."""
    hybrid_shard: bool = False
    """Shard within each node and copy between nodes: less traffic between nodes. Only for fsdp."""
    prefetch_layers: int = Field(1, ge=0)
    """Layers gathered ahead of the one that computes. Only for fsdp."""
    layer_class: str | None = None
    """Class of the layers that are sharded one by one; null finds the model's decoder layers. Only for fsdp."""
    expected_world_size: int | None = Field(None, gt=0)
    """GPUs that the recipe's numbers were chosen for: others are warned of, and refused under fsdp."""


class ResourcesSpec(Section):
    """What the run asks of a cluster."""

    nodes: int = Field(1, gt=0)
    """Nodes."""
    gpus_per_node: int = Field(1, gt=0)
    """GPUs of each node; one rank (process) runs per GPU."""
    memory_per_gpu_mb: int | None = Field(None, gt=0)
    """Host memory per GPU in MB; null: the profile's share."""
    walltime: Walltime = "01:00:00"
    """Time limit of one job, as in sbatch's --time; the run goes on in further jobs."""
