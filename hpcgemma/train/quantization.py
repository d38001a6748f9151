"""Weights in 4 bits, through bitsandbytes: the linear layers of the text decoder, frozen while adapters train.

QLoRA, Dettmers et al. 2023. Embeddings, norms, the output head and a vision tower stay whole: together they are small,
and an image is seen through every weight of its tower.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import QuantizationSpec
from hpcgemma.train.anatomy import text_layers


def import_bitsandbytes() -> ModuleType | None:
    """Import bitsandbytes without letting it look for kernels on the hub; None where it is not installed.

    Where the CPU knows bf16, bitsandbytes 0.50 fetches a kernel through the package `kernels` as it is imported, and
    says so on stderr where it cannot. Nothing here uses that kernel. peft imports bitsandbytes too: this comes first.
    """
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level, kernels = log.level, sys.modules.get("kernels")
    log.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # so that importing it fails
    try:
        return importlib.import_module("bitsandbytes")
    except ModuleNotFoundError:
        return None
    finally:
        log.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels


def quantization_config(
    spec: QuantizationSpec, model: Any, compute: torch.dtype, storage: torch.dtype | None
) -> BitsAndBytesConfig:
    """Return what makes transformers quantize weights while it loads them.

    Args:
        spec: What the recipe says.
        model: The model without weights, to know what is left whole.
        compute: Precision of the products.
        storage: Type that packed weights pretend to have; None: uint8.
    """
    chosen = {id(layer) for _, layer in _linear_layers(model)}
    whole = [name for name, module in model.named_modules() if type(module) is nn.Linear and id(module) not in chosen]
    make: Any = BitsAndBytesConfig
    config: BitsAndBytesConfig = make(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec.type,
        bnb_4bit_use_double_quant=spec.double_quantization,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=storage or torch.uint8,
        llm_int8_skip_modules=whole,
    )
    return config


def quantize(spec: QuantizationSpec, model: Any, compute: torch.dtype, storage: torch.dtype | None) -> None:
    """Quantize the weights of a model in its place, layer by layer; arguments as of ``quantization_config``."""
    bitsandbytes: Any = import_bitsandbytes()
    for name, layer in list(_linear_layers(model)):
        weight = bitsandbytes.nn.Params4bit(
            layer.weight.data,
            requires_grad=False,
            compress_statistics=spec.double_quantization,
            quant_type=spec.type,
            quant_storage=storage or torch.uint8,
        )
        packed = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=compute, device="meta"
        )
        weight.module, packed.weight, packed.bias = packed, weight, layer.bias
        packed.quant_storage = weight.quant_storage
        packed.weight = weight.to(layer.weight.device)
        model.set_submodule(name, packed)
    model.is_loaded_in_4bit = True  # peft asks


def use_one_arithmetic(model: nn.Module) -> None:
    """Let quantized layers compute in an evaluation as they do in training.

    On a CPU that knows bf16, bitsandbytes 0.50 packs a layer's weight anew in its first evaluation, and the product
    that it takes from then on has no gradient: adapters below that layer would stop learning in silence.
    """
    for layer in quantized_layers(model):
        layer.support_avx512bf16_for_cpu = False


def quantized_layers(model: nn.Module) -> Iterator[Any]:
    """Yield the layers whose weights are in 4 bits."""
    # peft's wrapper around such a layer has the same name, but is no nn.Linear.
    return (each for each in model.modules() if isinstance(each, nn.Linear) and type(each).__name__ == "Linear4bit")


def check_quantization(spec: QuantizationSpec | None, *, has_adapters: bool) -> None:
    """Check that quantization can be done, and that something is trained beside it.

    Raises:
        InputError: It cannot.
    """
    if spec is None:
        return
    if import_bitsandbytes() is None:
        raise InputError(
            f"model.quantization {spec.type} needs the package bitsandbytes, which is not installed",
            "pip install 'hpcgemma[quantization]', or --set model.quantization=null",
        )
    if not has_adapters:
        raise InputError(
            "model.quantization freezes all weights, and lora is null: nothing would be trained",
            "--set lora.rank=16 trains adapters, or --set model.quantization=null",
        )


def describe_quantization(spec: QuantizationSpec, model: nn.Module, compute: torch.dtype) -> str:
    """Return a sentence on what is quantized, and how."""
    packed = sum(layer.in_features * layer.out_features for layer in quantized_layers(model))
    whole = sum(each.numel() for each in model.parameters() if not hasattr(each, "quant_state"))
    double = ", its constants quantized too" if spec.double_quantization else ""
    return (
        f"quantization: {packed:,} weights in {spec.type} ({spec.bits} bits{double}), {whole:,} whole; "
        f"products in {str(compute).removeprefix('torch.')}"
    )


def _linear_layers(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers inside the text decoder's layers, with their names.

    Raises:
        InputError: There is none.
    """
    inside = {id(module) for layer in text_layers(model) for module in layer.modules()}
    found = [(name, each) for name, each in model.named_modules() if type(each) is nn.Linear and id(each) in inside]
    if not found:
        raise InputError(
            f"{type(model).__name__} has no linear layers that can be quantized", "--set model.quantization=null"
        )
    return iter(found)
