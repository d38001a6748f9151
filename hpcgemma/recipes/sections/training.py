"""The training of a recipe: optimizer, schedule, batches and precision."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hpcgemma.configfile import Section


class OptimizerSpec(Section):
    """The optimizer."""

    name: Literal["adamw", "adamw_8bit", "adafactor"] = "adamw"
    """adamw (Loshchilov and Hutter 2019); adamw_8bit: its states in 8 bits, by bitsandbytes (Dettmers et al. 2022);
    adafactor: its second moment as one row and one column per matrix (Shazeer and Stern 2018)."""
    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate."""
    betas: list[float] = Field([0.9, 0.999], min_length=2, max_length=2)
    """Decay of the first and second moment. Only for adamw and adamw_8bit."""
    eps: float = Field(1e-8, gt=0)
    """Added to the denominator. Only for adamw and adamw_8bit."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay; not applied to norms and biases."""
    fused: bool = True
    """One kernel for all parameters, where the device has it. Only for adamw."""
    clip_threshold: float = Field(1.0, gt=0)
    """Root mean square to which a parameter's update is clipped. Only for adafactor."""
    decay_exponent: float = Field(0.8, gt=0, le=1)
    """At step t the second moment decays by 1 - t ** -decay_exponent. Only for adafactor."""


class ScheduleSpec(Section):
    """Learning rate over the steps."""

    name: Literal["constant", "linear", "cosine", "cosine_with_restarts", "wsd"] = "cosine"
    """Shape after the warm-up; wsd: constant, then a linear fall (warmup, stable, decay; Hu et al. 2024)."""
    warmup: float = Field(0.0, ge=0)
    """Below 1: share of all steps; from 1 on: steps."""
    num_cycles: int = Field(1, gt=0)
    """Cycles. Only for cosine_with_restarts."""
    decay: float = Field(0.1, gt=0)
    """Length of the fall. Up to 1: share of all steps; above: steps. Only for wsd."""


class TrainingSpec(Section):
    """The loop."""

    epochs: float = Field(1.0, gt=0)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, gt=0)
    """Optimizer steps to take at most; null: as many as the epochs give."""
    global_batch: int = Field(16, gt=0)
    """Rows per optimizer step, over all GPUs; a multiple of micro_batch x GPUs, and under xla of 128."""
    micro_batch: int = Field(1, gt=0)
    """Rows per GPU and forward pass."""
    eval_micro_batch: int = Field(1, gt=0)
    """Rows per GPU and forward pass of an evaluation."""
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are clipped to this norm; null does not clip."""
    precision: Literal["bf16", "fp32", "fp16"] = "bf16"
    """Arithmetic of the model. bf16: frozen weights too are held in bfloat16; fp32: all in float32. fp16 is refused:
    Gemma 3 overflows in it."""
    trained_weights: Literal["fp32", "bf16"] = "fp32"
    """What trained weights, their gradients and the optimizer's states are held in. bf16 halves that memory, but an
    update smaller than 1/256 of its weight is lost. Under deepspeed always fp32, beside a copy in what computes."""
    tf32: bool = True
    """TensorFloat-32 matrix products on GPUs that have them."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""
    compile: bool = False
    """torch.compile the model."""
    liger_kernels: bool = False
    """Liger's fused layers (norms, rotary embedding, GeGLU); needs a GPU and the package liger-kernel."""
    neftune_alpha: float | None = Field(None, gt=0)
    """Noise on the input embeddings while training (NEFTune, Jain et al. 2023); null adds none."""
    loss_chunk_tokens: int = Field(1024, gt=0)
    """Learned tokens whose logits are in memory at once; the logits of a batch are never held whole."""
    empty_cache_every_steps: int | None = Field(None, gt=0)
    """Return cached GPU memory to the device every so many steps; null never does."""
    gpu_memory_fraction: float | None = Field(None, gt=0, le=1)
    """Cap of the memory a process may take of its GPU; the rest is a buffer. null: no cap."""
    log_every_steps: int = Field(1, gt=0)
    """Steps between lines of metrics.jsonl."""
    seed: int = 0
    """Seed of row order, dropout and random starts."""
