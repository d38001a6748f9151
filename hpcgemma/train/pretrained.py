"""Pretrained weights: read from a folder or the hub cache, never from the network, and complete or refused.

safetensors files are mapped into memory: all ranks of a node read the same pages of the page cache, and with a GPU each
weight goes straight there. So a node holds one copy in memory that the kernel may drop, not one per rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, GenerationConfig
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import ModelSpec
from hpcgemma.train.architecture import Architecture
from hpcgemma.train.attention import attention_of_parts
from hpcgemma.train.data.tokenizer import first_line

# Where a checkpoint of more than text keeps its text model, by the names of transformers 4 and 5. Without the mapping,
# transformers 5.23 finds none of these weights and starts from random ones, with no more than a warning.
_TEXT_KEYS = {
    r"^(model\.language_model|language_model\.model)\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}


def load_pretrained(
    spec: ModelSpec,
    architecture: Architecture,
    attention: str,
    dtype: torch.dtype,
    device: torch.device,
    quantization: BitsAndBytesConfig | None,
) -> tuple[Any, list[str]]:
    """Return the model with its weights on their device, and sentences on what was read.

    Args:
        spec: Path and revision.
        architecture: What is loaded.
        attention: Attention implementation.
        dtype: Precision of the weights that are not quantized; there is no copy in another one on the way.
        device: Where they go.
        quantization: How linear layers are quantized as they are read; None: not at all.

    Raises:
        InputError: Weights are missing, broken, or of another shape than the config says.
    """
    options: dict[str, Any] = {
        "revision": spec.revision,
        "local_files_only": True,
        "attn_implementation": attention_of_parts(architecture.config, attention),
        "dtype": dtype,
        "ignore_mismatched_sizes": True,  # they are reported, and refused below
        "output_loading_info": True,
    }
    is_split: Callable[[], bool] = is_deepspeed_zero3_enabled  # under ZeRO-3, which goes with no device map
    if (device.type == "cuda" or quantization is not None) and not is_split():
        options["device_map"] = {"": device}
    if quantization is not None:
        options["quantization_config"] = quantization
    if architecture.is_part:
        options["key_mapping"] = _TEXT_KEYS
    try:
        with _quiet():
            model, info = architecture.model_class.from_pretrained(spec.path, config=architecture.config, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"the weights at {spec.path!r} cannot be read: {first_line(error)}",
            "check the download: hf download again, or correct model.path",
        ) from None
    faulty = sorted(info["missing_keys"]) + sorted(str(each) for each in info["mismatched_keys"])
    if faulty:
        raise InputError(
            f"the weights at {spec.path!r} are incomplete: {len(faulty)} are missing or of another shape, "
            f"such as {faulty[0]}",
            "check the download: hf download again, or correct model.path",
        )
    return model, _describe_unused(sorted(info["unexpected_keys"]), architecture)


def generation_config_of(spec: ModelSpec) -> GenerationConfig | None:
    """Return how pretrained weights are meant to generate; None where they do not say."""
    try:
        load: Any = GenerationConfig.from_pretrained
        config: GenerationConfig = load(spec.path, revision=spec.revision, local_files_only=True)
    except OSError:
        return None
    return config


def _describe_unused(names: list[str], architecture: Architecture) -> list[str]:
    if not names:
        return []
    if architecture.is_part:
        return [f"model: the text model alone; {len(names)} weights of other parts are not loaded, such as {names[0]}"]
    return [f"model: {len(names)} weights of the checkpoint belong to no part of the model, such as {names[0]}"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' table of missing and unexpected weights out of the log: what matters is said above."""
    log: Any = transformers.utils.logging
    level = log.get_verbosity()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(level)
