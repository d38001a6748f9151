"""Bytes that a training keeps on each GPU: weights, gradients and optimizer states. Pure.

Activations, the logits of a chunk, the device's own workspace and the allocator's waste are not estimated here:
`ALLOWANCE_SHARE` of a GPU is left free for them. Sources: Rajbhandari et al. 2020, ZeRO, section 3.1 (what mixed
precision keeps) and 5 (what each stage divides); Dettmers et al. 2023, QLoRA, sections 2 and 3 (4 bits and their
constants); Dettmers et al. 2022, 8-bit optimizers, section 2; Zhao et al. 2023, PyTorch FSDP, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hpcgemma.recipes.types import FreezeSpec, LoraSpec, OptimizerSpec, QuantizationSpec, Recipe, StrategySpec
from hpcgemma.shapes import (
    EMBEDDINGS,
    HEAD,
    ModelShape,
    embedding_parameters,
    head_parameters,
    layer_parameters,
    linear_layers,
    model_parameters,
    projector_parameters,
    tower_parameters,
)

GIB = 2**30
ALLOWANCE_SHARE = 0.4
"""Share of a GPU left for what is not estimated: activations above all."""
StrategyName = Literal["ddp", "fsdp", "deepspeed", "xla"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Parameters by what becomes of them."""

    model: int
    """Of the model itself, tied ones once."""
    quantized: int
    """Of these, matrices kept in 4 bits."""
    frozen: int
    """Of these, kept whole and not trained. What lies under modules_to_save stays beside their trained copy."""
    adapters: int
    """Trained, in adapters."""
    whole: int
    """Trained, in modules that are trained whole."""

    @property
    def trained(self) -> int:
        """All that is trained."""
        return self.adapters + self.whole


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMemory:
    """What one process keeps from step to step, by where and for what."""

    weights_bytes: int
    """Weights, or this process's part of them."""
    gathered_bytes: int
    """Weights of other processes that are here while their layer computes."""
    gradients_bytes: int
    """Gradients of the trained weights."""
    optimizer_bytes: int
    """The optimizer's states, with the fp32 copy of the weights where it keeps one."""
    host_bytes: int
    """What is offloaded to host memory; not in the sum."""

    @property
    def total_bytes(self) -> int:
        """The sum on the GPU."""
        return self.weights_bytes + self.gathered_bytes + self.gradients_bytes + self.optimizer_bytes


def adapter_parameters(shape: ModelShape, lora: LoraSpec) -> int:
    """Return the parameters of the adapters.

    A layer of i inputs and o outputs gets r x (i + o) (Hu et al. 2021, section 4.1), and with DoRA a magnitude for
    each output (Liu et al. 2024, section 4).
    """
    found = linear_layers(shape)
    total = 0
    for name in lora.target_modules:
        for linear in found.get(name, []):
            magnitudes = linear.outputs if lora.dora else 0
            total += linear.count * (lora.rank * (linear.inputs + linear.outputs) + magnitudes)
    vocab_size, hidden_size = shape.text.vocab_size, shape.text.hidden_size
    for name, outputs in ((HEAD, vocab_size), (EMBEDDINGS, hidden_size)):
        if name in lora.target_modules:
            total += lora.rank * (vocab_size + hidden_size) + (outputs if lora.dora else 0)
    return total


def saved_parameters(shape: ModelShape, lora: LoraSpec) -> int:
    """Return the parameters of the modules that are trained whole beside adapters; tied ones once."""
    names = set(lora.modules_to_save)
    total = 0
    if EMBEDDINGS in names or (HEAD in names and shape.text.is_tied):
        total += embedding_parameters(shape.text)
    if HEAD in names:
        total += head_parameters(shape.text)
    for name, layers in linear_layers(shape).items():
        if name in names:
            total += sum(each.weights + each.has_bias * each.outputs * each.count for each in layers)
    return total


def frozen_parameters(shape: ModelShape, freeze: FreezeSpec) -> int:
    """Return the parameters that keep their weights in a training without adapters, by whole layers."""
    text, names = shape.text, set(freeze.modules)
    head = freeze.head or HEAD in names
    total = 0
    if freeze.embeddings or EMBEDDINGS in names or (head and text.is_tied):
        total += embedding_parameters(text)
    if head:
        total += head_parameters(text)
    total += min(freeze.layers, text.layers) * layer_parameters(text)
    if shape.vision is not None and "vision_tower" in names:
        total += tower_parameters(shape.vision)
    if shape.vision is not None and "multi_modal_projector" in names:
        total += projector_parameters(shape.vision, text)
    return total


def quantized_parameters(shape: ModelShape) -> int:
    """Return the elements that 4-bit loading quantizes: the matrices of linear layers, but embeddings and head."""
    return sum(linear.weights for layers in linear_layers(shape).values() for linear in layers)


def count_parameters(recipe: Recipe, shape: ModelShape) -> ParameterCount:
    """Return how many parameters a recipe trains, freezes and quantizes."""
    model = model_parameters(shape)
    if recipe.lora is None:
        frozen = frozen_parameters(shape, recipe.model.freeze)
        return ParameterCount(model=model, quantized=0, frozen=frozen, adapters=0, whole=model - frozen)
    quantized = 0 if recipe.model.quantization is None else quantized_parameters(shape)
    return ParameterCount(
        model=model,
        quantized=quantized,
        frozen=model - quantized,
        adapters=adapter_parameters(shape, recipe.lora),
        whole=saved_parameters(shape, recipe.lora),
    )


def quantized_element_bytes(quantization: QuantizationSpec) -> float:
    """Return the bytes of a weight in 4 bits, with its share of the quantization constants.

    A constant of 4 bytes for each block of 64 weights; quantized twice, a constant of 1 byte for each block and one of
    4 bytes for each 256 of these. Source: Dettmers et al. 2023, QLoRA, section 3, "Double Quantization".
    """
    constants = 1 / 64 + 4 / (64 * 256) if quantization.double_quantization else 4 / 64
    return quantization.bits / 8 + constants


def optimizer_element_bytes(optimizer: OptimizerSpec, state_bytes: int) -> float:
    """Return the bytes of an optimizer's states for each trained parameter.

    AdamW keeps two moments; in 8 bits, two of 1 byte, each with a constant of 4 bytes for a block of 256 (Dettmers et
    al. 2022, section 2). Adafactor keeps a row and a column of each matrix, under 0.01 bytes from a width of 1,000 on
    (Shazeer and Stern 2018, section 3): counted as none.

    Args:
        optimizer: Which one.
        state_bytes: Bytes of an element of AdamW's moments.
    """
    if optimizer.name == "adamw":
        return 2.0 * state_bytes
    return 2 * (1 + 4 / 256) if optimizer.name == "adamw_8bit" else 0.0


def state_memory(
    recipe: Recipe, shape: ModelShape, *, strategy: StrategyName, nodes: int, gpus_per_node: int
) -> StateMemory:
    """Return what one process keeps of a training.

    Args:
        recipe: Method, optimizer and precision; and the options of the strategy.
        shape: The model's shape.
        strategy: The strategy to reckon with, in place of the recipe's.
        nodes: Nodes.
        gpus_per_node: Processes of each node.
    """
    count, training, spec = count_parameters(recipe, shape), recipe.training, recipe.strategy
    computing_bytes = 2 if training.precision == "bf16" else 4
    trained_bytes = 4 if training.trained_weights == "fp32" else 2
    copy_bytes, state_bytes = 0, trained_bytes
    if strategy == "deepspeed":
        # ZeRO holds weights and gradients in what computes, and steps on a flat copy in fp32: 2 + 2 + K, where K = 12.
        trained_bytes, copy_bytes, state_bytes = computing_bytes, 4, 4
    shares = _shares(spec, strategy, nodes, gpus_per_node)
    # ZeRO leaves weights in 4 bits whole on each process; FSDP shards their bytes.
    quantized_share = 1 if strategy == "deepspeed" else shares.weights
    quantization = recipe.model.quantization
    quantized_bytes = count.quantized * quantized_element_bytes(quantization) if quantization else 0.0

    weights = (count.frozen * computing_bytes + count.trained * trained_bytes) / shares.weights
    weights += quantized_bytes / quantized_share
    gradients = count.trained * trained_bytes / shares.gradients
    optimizer = count.trained * (copy_bytes + optimizer_element_bytes(recipe.optimizer, state_bytes)) / shares.optimizer
    gathered = 0.0 if shares.weights == 1 else _gathered_bytes(recipe, shape, strategy, computing_bytes)

    offloads_weights = spec.offload_parameters and shares.weights > 1
    offloads_optimizer = spec.offload_optimizer if strategy == "deepspeed" else offloads_weights
    host = offloads_weights * weights + offloads_optimizer * (optimizer + gradients)
    return StateMemory(
        weights_bytes=0 if offloads_weights else round(weights),
        gathered_bytes=round(gathered),
        gradients_bytes=0 if offloads_optimizer else round(gradients),
        optimizer_bytes=0 if offloads_optimizer else round(optimizer),
        host_bytes=round(host),
    )


@dataclass(frozen=True, slots=True)
class _Shares:
    """Into how many parts a strategy divides each kind of state."""

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1


def _shares(spec: StrategySpec, strategy: StrategyName, nodes: int, gpus_per_node: int) -> _Shares:
    world_size = nodes * gpus_per_node
    if strategy == "fsdp":
        parts = gpus_per_node if spec.hybrid_shard else world_size
        return _Shares(parts, parts, parts)
    if strategy == "deepspeed":  # Rajbhandari et al. 2020, sections 5.1 to 5.3
        stage = spec.zero_stage or 1
        return _Shares(world_size if stage == 3 else 1, world_size if stage >= 2 else 1, world_size)
    return _Shares()


def _gathered_bytes(recipe: Recipe, shape: ModelShape, strategy: StrategyName, computing_bytes: int) -> float:
    """Return the largest set of weights that is gathered at once, in the width that computes.

    FSDP keeps what belongs to no decoder layer (embeddings, head, vision tower) for a whole step, and layers one by
    one, those prefetched beside the one that computes (Zhao et al. 2023, section 3); ZeRO-3 as little as both.
    """
    text, spec, quantization = shape.text, recipe.strategy, recipe.model.quantization
    layer = layer_parameters(text) * computing_bytes + 0.0
    if quantization is not None:
        matrices = quantized_parameters(ModelShape(text=text)) / text.layers
        layer -= matrices * (computing_bytes - quantized_element_bytes(quantization))
    outside = (model_parameters(shape) - text.layers * layer_parameters(text)) * computing_bytes
    if strategy == "fsdp":
        layers = min(1 + spec.prefetch_layers, text.layers) if spec.reshard_after_forward else text.layers
        return outside + layers * layer
    return outside + layer
