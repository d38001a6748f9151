"""The tiny run of a drill: which recipe, how large, and where. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hpcgemma.drill.acts import Act
from hpcgemma.errors import InputError
from hpcgemma.profiles import Profile, QueueSpec

RECIPE = "svg_captions_tiny"
"""Draws its own data and starts from random weights: nothing is downloaded."""
NAME = "drill"
WALLTIME = "00:20:00"
"""Time limit of each job: a drill whose terminal is gone leaves nothing behind that lives for hours."""
INTERVAL = 100
"""Steps between two checkpoints: a few seconds, and what a run that is killed may lose."""
_RANKS_ON_CPUS = 2
"""The fewest that must agree on the step at which they save."""
_STEPS, _STEPS_TO_A_LIMIT = 2000, 20_000
"""More than it takes: Slurm comes to a lowered time limit in a minute or two, in which no GPU must be done."""

On = Literal["auto", "cpu", "gpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a drill runs: a profile for it, how many ranks a node, and in words."""

    profile: Profile
    ranks: int
    sentence: str


def settings_of(acts: Sequence[Act], *, ranks: int, nodes: int) -> list[str]:
    """Return what is set of the recipe, as after ``--set``: a smaller model, more and shorter steps, frequent saves.

    The learning rate is constant after a few steps, and nothing is evaluated on the way, so that every step costs the
    same.

    Args:
        acts: What is done to the run.
        ranks: Processes of a node.
        nodes: Nodes.
    """
    steps = _STEPS_TO_A_LIMIT if Act.TIME_LIMIT in acts else _STEPS
    small = "hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, head_dim: 8, query_pre_attn_scalar: 8"
    return [
        f"model.config={{{small}}}",
        "data.generator.train_rows=512",
        "data.generator.eval_rows=32",
        "training.epochs=100000",
        f"training.max_steps={steps}",
        "training.micro_batch=4",
        "schedule.name=constant",
        "schedule.warmup=20",
        "evaluation.every_steps=null",
        "evaluation.generation=null",
        f"checkpoint.every_steps={INTERVAL}",
        "tensorboard=false",
        f"resources.nodes={nodes}",
        f"resources.gpus_per_node={ranks}",
    ]


def place_of(profile: Profile, on: On = "auto", partition: str | None = None) -> Place:
    """Return where a drill runs: without a GPU wherever the profile allows it, unless it is told otherwise.

    Args:
        profile: What the cluster offers.
        on: cpu: without a GPU; gpu: with one; auto: without, where the profile names a place for it.
        partition: Slurm partition; None takes the profile's.

    Raises:
        InputError: The profile has no such place.
    """
    if partition is not None and profile.scheduler != "slurm":
        raise InputError(f"profile {profile.name!r} has no partitions", "leave --partition out")
    queued = any(queue.partition == partition for queue in profile.queues) if partition else False
    if profile.device == "cpu" and on == "gpu":
        raise InputError(f"profile {profile.name!r} has no GPU (device: cpu)", "leave --on gpu out")
    if profile.device != "cuda" and on != "gpu":
        ranks = min(_RANKS_ON_CPUS, profile.node.gpus or _RANKS_ON_CPUS)
        return _place(profile.model_copy(update={"device": "cpu"}), ranks, partition, "on CPUs, as the profile allows")
    if on == "gpu" or (on == "auto" and (profile.cpu_queue is None or queued)):
        why = "as --on gpu asks" if on == "gpu" else "of the partition" if queued else "since the profile names no CPUs"
        device = "cuda" if profile.device == "auto" else profile.device
        return _place(profile.model_copy(update={"device": device}), 1, partition, f"on one GPU a node, {why}")
    if profile.cpu_queue is None:
        raise InputError(
            f"profile {profile.name!r} names no queue for jobs without a GPU",
            f"--on gpu; or a profile with `extends: {profile.name}` and `cpu_queue: {{partition: NAME, cpus: 4}}`",
        )
    return _on_cpu_queue(profile, partition)


def _on_cpu_queue(profile: Profile, partition: str | None) -> Place:
    """Return the place in the queue where jobs of a profile run without a GPU."""
    queue = profile.cpu_queue
    if queue is None:
        raise ValueError(f"profile {profile.name} has no cpu_queue")
    ranks = min(_RANKS_ON_CPUS, queue.cpus)
    request = {
        "gpu_style": "none",
        "constraint": None,
        "exclusive": False,
        "cpus_per_gpu": queue.cpus // ranks,
        "memory_per_gpu_mb": queue.memory_mb // ranks if queue.memory_mb else None,
    }
    there = QueueSpec(
        name="cpu", partition=queue.partition, qos=queue.qos, max_walltime=queue.max_walltime, default=True
    )
    changed = {
        "device": "cpu",
        "node": profile.node.model_copy(
            update=dict.fromkeys(("gpus", "gpu_type", "gpu_memory_gib", "cpus", "memory_mb"))
        ),
        "request": profile.request.model_copy(update=request),
        "queues": [there],
    }
    words = "on CPUs, in the profile's cpu_queue (the partition of the GPUs may treat jobs otherwise: --on gpu)"
    return _place(profile.model_copy(update=changed), ranks, partition, words)


def _place(profile: Profile, ranks: int, partition: str | None, sentence: str) -> Place:
    if partition is not None:
        known = next((queue for queue in profile.queues if queue.partition == partition), None)
        # A QOS belongs to its partition: of one that the profile does not name, the account's default counts.
        there = known or QueueSpec(name="chosen", partition=partition, default=True)
        profile = profile.model_copy(update={"queues": [there.model_copy(update={"default": True})]})
    return Place(profile=profile, ranks=ranks, sentence=sentence)
