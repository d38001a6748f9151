"""Fields of a recipe that cannot go together: each names both, the reason and the fix. Pure.

What is only worth knowing, a caution, is kept apart from what would fail, or train something else than was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hpcgemma.findings import Finding
from hpcgemma.recipes.only_for import strays, switching
from hpcgemma.recipes.types import Recipe
from hpcgemma.shapes import EMBEDDINGS, HEAD, TextShape, shape_of

TPU_BATCH_MULTIPLE = 128
"""Rows that a TPU computes at once: its registers are 8 x 128, and shorter batches are padded (Cloud TPU performance
guide)."""
_TYPICAL_WEIGHT = 0.02
"""Standard deviation of a fresh weight in Gemma and its like (initializer_range)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a recipe is judged against."""

    nodes: int
    gpus_per_node: int
    device: Literal["cuda", "cpu", "auto"] = "auto"
    """Of the processes; auto is not known yet."""
    model_config: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the model's transformers config."""

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return self.nodes * self.gpus_per_node


def contradictions(recipe: Recipe, around: Surroundings) -> list[Finding]:
    """Return everything in a recipe that contradicts something else in it, or its surroundings.

    Args:
        recipe: Its strategy is named, not auto.
        around: Processes, device and model.
    """
    text = _text_shape(recipe, around)
    return [
        *strays(recipe),
        *_of_processes(recipe, around),
        *_of_sharding(recipe),
        *_of_xla(recipe, around),
        *_of_quantization(recipe),
        *_of_adapters(recipe, text),
        *_of_freezing(recipe, text),
        *_of_precision(recipe, around),
        *_of_attention(recipe, text),
        *_of_device(recipe, around),
        *_of_evaluation(recipe),
        *_of_data(recipe),
    ]


def cautions(recipe: Recipe, around: Surroundings) -> list[Finding]:
    """Return what a person should know before the submission, though it can be trained."""
    text = _text_shape(recipe, around)
    return [
        *_unexpected_processes(recipe, around),
        *_frozen_with(recipe, text),
        *_lost_updates(recipe),
        *_unmeasurable(recipe, text),
    ]


def _text_shape(recipe: Recipe, around: Surroundings) -> TextShape | None:
    shape = shape_of(around.model_config or recipe.model.config)
    return shape.text if shape else None


def _of_processes(recipe: Recipe, around: Surroundings) -> Iterator[Finding]:
    spec = recipe.strategy
    shape = f"resources.nodes {around.nodes} x resources.gpus_per_node {around.gpus_per_node}"
    if spec.name == "fsdp" and around.world_size == 1:
        yield Finding(
            f"strategy.name fsdp shards over processes, and {shape} is one process",
            "--set strategy.name=ddp, or --set resources.gpus_per_node=2",
        )
    elif spec.name == "fsdp" and spec.expected_world_size not in (None, around.world_size):
        yield Finding(
            f"strategy.expected_world_size is {spec.expected_world_size}, and {shape} gives {around.world_size} "
            "processes: each would hold another part of the model than strategy.name fsdp was planned with",
            f"--set strategy.expected_world_size={around.world_size} if it fits, or resources that make "
            f"{spec.expected_world_size} processes",
        )
    if (
        spec.name == "fsdp"
        and spec.hybrid_shard
        and around.world_size > 1
        and 1 in (around.nodes, around.gpus_per_node)
    ):
        yield Finding(
            f"strategy.hybrid_shard shards within a node and copies between nodes, and {shape} leaves nothing to "
            f"{'copy' if around.nodes == 1 else 'shard'}",
            "--set strategy.hybrid_shard=false",
        )


def _of_sharding(recipe: Recipe) -> Iterator[Finding]:
    spec, training = recipe.strategy, recipe.training
    is_zero3 = spec.name == "deepspeed" and spec.zero_stage == 3
    if spec.name == "deepspeed" and spec.zero_stage is None:
        yield Finding(
            "strategy.name is deepspeed, and strategy.zero_stage does not say what it shards",
            "--set strategy.zero_stage=2  (1: optimizer, 2: and gradients, 3: and weights)",
        )
    if spec.name == "deepspeed" and spec.zero_stage in (1, 2) and spec.offload_parameters:
        yield Finding(
            f"strategy.offload_parameters moves sharded weights, and strategy.zero_stage {spec.zero_stage} shards none",
            "--set strategy.offload_parameters=false, or --set strategy.zero_stage=3",
        )
    if is_zero3 and recipe.model.quantization is not None:
        yield Finding(
            "strategy.zero_stage 3 shards weights, and skips those that model.quantization keeps in 4 bits: each "
            "process would hold all of them",
            f"{switching(recipe, 'strategy', 'fsdp')}  (FSDP shards them)",
        )
    if is_zero3 and training.compile:
        yield Finding(
            "training.compile cannot follow strategy.zero_stage 3, which gathers weights in hooks around every module",
            f"--set training.compile=false, or {switching(recipe, 'strategy', 'fsdp')}",
        )
    if spec.name == "fsdp" and training.compile and recipe.model.quantization is not None:
        yield Finding(
            "training.compile is done anew for each layer that strategy.name fsdp gathers from the 4 bits of "
            "model.quantization, until torch gives it up",
            "--set training.compile=false, or --set strategy.name=ddp",
        )
    if spec.name in ("fsdp", "deepspeed") and recipe.optimizer.name == "adamw_8bit":
        yield Finding(
            f"optimizer.name adamw_8bit keeps its states in blocks of 256 elements, which strategy.name {spec.name} "
            "would cut through",
            f"--set optimizer.name=adamw, or {switching(recipe, 'strategy', 'ddp')}",
        )


def _of_xla(recipe: Recipe, around: Surroundings) -> Iterator[Finding]:
    training = recipe.training
    if recipe.strategy.name != "xla":
        return
    if training.precision != "bf16":
        yield Finding(
            f"strategy.name xla computes in bfloat16, and training.precision is {training.precision}",
            "--set training.precision=bf16",
        )
    if training.global_batch % TPU_BATCH_MULTIPLE:
        below = training.global_batch // TPU_BATCH_MULTIPLE * TPU_BATCH_MULTIPLE
        nearest = [batch for batch in (below, below + TPU_BATCH_MULTIPLE) if batch]
        yield Finding(
            f"training.global_batch {training.global_batch} is not a multiple of {TPU_BATCH_MULTIPLE}: under "
            "strategy.name xla a TPU pads it to one and computes the rest in vain",
            f"--set training.global_batch={nearest[0]}  (the nearest that fit: {' or '.join(map(str, nearest))})",
        )
    if recipe.model.quantization is not None:
        yield Finding(
            "model.quantization needs bitsandbytes, which has no kernels for strategy.name xla",
            "--set model.quantization=null",
        )
    if recipe.optimizer.name == "adamw_8bit":
        yield Finding(
            "optimizer.name adamw_8bit needs bitsandbytes, which has no kernels for strategy.name xla",
            "--set optimizer.name=adamw",
        )
    if recipe.data.packing:
        yield Finding(
            "data.packing is not supported by strategy.name xla, whose batches have one shape without it",
            "--set data.packing=false",
        )
    if training.compile:
        yield Finding(
            "training.compile is torch's compiler, and strategy.name xla has its own",
            "--set training.compile=false",
        )
    if training.liger_kernels:
        yield Finding(
            "training.liger_kernels is for GPUs, and strategy.name is xla", "--set training.liger_kernels=false"
        )
    if recipe.model.attention not in ("auto", "eager"):
        yield Finding(
            f"model.attention {recipe.model.attention} has no kernel under strategy.name xla, whose compiler fuses "
            "what eager attention does",
            "--set model.attention=auto",
        )
    if recipe.model.kind == "vision":
        yield Finding(
            "model.kind vision has no batches of one shape, which strategy.name xla needs",
            "--set model.kind=text, or --set strategy.name=auto",
        )
    if recipe.evaluation.generation is not None:
        yield Finding(
            "evaluation.generation makes answers grow token by token, and strategy.name xla compiles each length anew",
            "--set evaluation.generation=null, or answer with final/ on a GPU or a CPU",
        )
    if recipe.monitors is not None:
        yield Finding(
            "monitors read attention scores a few at a time, and strategy.name xla would compile each read anew",
            "--set monitors=null, or measure on a GPU or a CPU",
        )
    if around.device == "cuda":
        yield Finding(
            "strategy.name xla computes on a TPU, and the profile's device is cuda",
            "--set strategy.name=auto, or device: auto in the profile",
        )


def _of_quantization(recipe: Recipe) -> Iterator[Finding]:
    if recipe.model.quantization is not None and recipe.lora is None:
        yield Finding(
            "model.quantization keeps frozen weights in 4 bits, and without lora all of them would be trained",
            "--set lora.rank=16, or --set model.quantization=null",
        )


def _of_adapters(recipe: Recipe, text: TextShape | None) -> Iterator[Finding]:
    lora = recipe.lora
    if lora is None:
        return
    both = [name for name in lora.target_modules if name in lora.modules_to_save]
    if both:
        yield Finding(
            f"lora.target_modules and lora.modules_to_save both name {' and '.join(both)}: adapted or trained whole, "
            "not both",
            f"--set lora.target_modules=[{', '.join(name for name in lora.target_modules if name not in both)}]",
        )
    tied = [name for name in (EMBEDDINGS, HEAD) if name in lora.target_modules and name not in both]
    if tied and text is not None and text.is_tied:
        rest = [name for name in lora.target_modules if name not in tied]
        saved = [*lora.modules_to_save, *(name for name in (EMBEDDINGS, HEAD) if name not in lora.modules_to_save)]
        yield Finding(
            f"lora.target_modules names {' and '.join(tied)}, and this {text.model_type} ties {EMBEDDINGS} and {HEAD} "
            "(model.config.tie_word_embeddings): an adapter on one would make them differ",
            f"--set lora.target_modules=[{', '.join(rest)}] --set lora.modules_to_save=[{', '.join(saved)}]",
        )


def _of_freezing(recipe: Recipe, text: TextShape | None) -> Iterator[Finding]:
    freeze = recipe.model.freeze
    wanted = [
        f"{name}={default}"
        for name, default in (("embeddings", "false"), ("head", "false"), ("layers", "0"), ("modules", "[]"))
        if getattr(freeze, name)
    ]
    if recipe.lora is not None and wanted:
        names = " and ".join(f"model.freeze.{each.partition('=')[0]}" for each in wanted)
        yield Finding(
            f"{names} cannot be set beside lora: adapters freeze the whole model but lora.modules_to_save",
            " ".join(f"--set model.freeze.{each}" for each in wanted),
        )
    elif text is not None and freeze.layers > text.layers:
        yield Finding(
            f"model.freeze.layers is {freeze.layers}, and the model has {text.layers} (model.config.num_hidden_layers)",
            f"--set model.freeze.layers={text.layers // 2}",
        )


def _of_precision(recipe: Recipe, around: Surroundings) -> Iterator[Finding]:
    training = recipe.training
    model_type = str(around.model_config.get("model_type") or recipe.model.config.get("model_type") or "")
    if training.precision == "fp16":
        reason = (
            f"the activations of {model_type} overflow in it (transformers#36822), sometimes as a loss of 0"
            if model_type.startswith("gemma3")
            else "it needs loss scaling, which hpcgemma does not do"
        )
        yield Finding(
            f"training.precision fp16 is refused: {reason}", "--set training.precision=bf16, or fp32 on older GPUs"
        )
    if recipe.strategy.name == "deepspeed" and training.trained_weights == "bf16":
        yield Finding(
            "training.trained_weights is bf16, and strategy.name deepspeed steps on a copy in fp32 whatever it says",
            f"--set training.trained_weights=fp32, or {switching(recipe, 'strategy', 'fsdp')}",
        )
    elif training.precision == "fp32" and training.trained_weights == "bf16":
        yield Finding(
            "training.trained_weights is bf16, and training.precision fp32 computes with what bf16 has rounded already",
            "--set training.precision=bf16, or --set training.trained_weights=fp32",
        )


def _of_attention(recipe: Recipe, text: TextShape | None) -> Iterator[Finding]:
    attention = recipe.model.attention
    if attention == "sdpa" and text is not None and text.attention_softcap is not None:
        yield Finding(
            f"model.attention sdpa cannot apply this {text.model_type}'s softcap of {text.attention_softcap:g} "
            "(model.config.attn_logit_softcapping): it would train another model",
            "--set model.attention=auto",
        )
    if attention == "flash_attention_2" and recipe.training.precision == "fp32":
        yield Finding(
            "model.attention flash_attention_2 computes in bf16, and training.precision is fp32",
            "--set model.attention=auto, or --set training.precision=bf16",
        )


def _of_device(recipe: Recipe, around: Surroundings) -> Iterator[Finding]:
    if around.device != "cpu":
        return
    if recipe.training.liger_kernels:
        yield Finding(
            "training.liger_kernels needs a GPU, and the profile's device is cpu", "--set training.liger_kernels=false"
        )
    if recipe.model.attention == "flash_attention_2":
        yield Finding(
            "model.attention flash_attention_2 needs a GPU, and the profile's device is cpu",
            "--set model.attention=auto",
        )


def _of_evaluation(recipe: Recipe) -> Iterator[Finding]:
    if recipe.evaluation.early_stopping is not None and recipe.evaluation.every_steps is None:
        yield Finding(
            "evaluation.early_stopping counts evaluations, and evaluation.every_steps null makes one, at the end",
            "--set evaluation.every_steps=50, or --set evaluation.early_stopping=null",
        )


def _of_data(recipe: Recipe) -> Iterator[Finding]:
    if recipe.data.generator is not None and recipe.data.train is not None:
        yield Finding("data.train and data.generator are both set", "--set data.generator=null to use the file")
    if recipe.data.prompt_template is not None and recipe.data.format in ("messages", "sharegpt", "text"):
        yield Finding(
            f"data.prompt_template makes a user turn, and rows of data.format {recipe.data.format} take none",
            "--set data.prompt_template=null",
        )
    if recipe.data.learn != "all" and recipe.data.format == "text":
        yield Finding(
            f"data.learn {recipe.data.learn} chooses among answers, and rows of data.format text have none",
            "--set data.learn=all",
        )
    if recipe.data.format == "text" and recipe.evaluation.generation is not None:
        yield Finding(
            "evaluation.generation asks for answers, and rows of data.format text ask nothing",
            "--set evaluation.generation=null",
        )
    if recipe.data.format == "image_caption" and recipe.model.kind == "text":
        yield Finding(
            "data.format image_caption shows images, and model.kind text sees none", "--set model.kind=vision"
        )


def _unexpected_processes(recipe: Recipe, around: Surroundings) -> Iterator[Finding]:
    expected = recipe.strategy.expected_world_size
    if recipe.strategy.name != "fsdp" and expected not in (None, around.world_size):
        yield Finding(
            f"strategy.expected_world_size is {expected}, and there are {around.world_size} processes: the "
            "global batch stays as it is, speed and memory per process will be others",
            f"--set strategy.expected_world_size={around.world_size} where that is meant",
        )


def _frozen_with(recipe: Recipe, text: TextShape | None) -> Iterator[Finding]:
    freeze = recipe.model.freeze
    if text is None or not text.is_tied or recipe.lora is not None or freeze.head == freeze.embeddings:
        return
    named, other = ("embeddings", "output head") if freeze.embeddings else ("head", "input embeddings")
    twin = "head" if freeze.embeddings else "embeddings"
    yield Finding(
        f"model.freeze.{named} freezes the {other} too: this {text.model_type} ties them",
        f"--set model.freeze.{twin}=true says the same in words",
    )


def _lost_updates(recipe: Recipe) -> Iterator[Finding]:
    """An update of AdamW is about as large as the learning rate; bf16 has 8 bits, and drops one below 1/256."""
    training, rate = recipe.training, recipe.optimizer.learning_rate
    if training.trained_weights == "bf16" and training.precision == "bf16" and rate * 256 < _TYPICAL_WEIGHT:
        yield Finding(
            "training.trained_weights bf16 loses updates smaller than 1/256 of their weight: at "
            f"optimizer.learning_rate {rate:g} those of weights above {rate * 256:.1g}",
            "--set training.trained_weights=fp32 where memory allows",
        )


def _unmeasurable(recipe: Recipe, text: TextShape | None) -> Iterator[Finding]:
    """What a monitor watches and a model has not is left out, not refused."""
    name = "softcap_saturation"
    if recipe.monitors is None or text is None or name not in recipe.monitors.measure:
        return
    if text.attention_softcap is None and text.final_softcap is None:
        rest = [each for each in recipe.monitors.measure if each != name]
        yield Finding(
            f"monitors.measure names {name}, and this {text.model_type} caps neither attention scores nor logits: it "
            "is left out",
            f"--set monitors.measure=[{','.join(rest)}]" if rest else "--set monitors=null",
        )
