"""The model that a recipe means: its weights, what of them is trained, and in which precision. Read this file first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import Recipe
from hpcgemma.train.adapters import add_adapters
from hpcgemma.train.anatomy import is_tied
from hpcgemma.train.architecture import Architecture, architecture_of
from hpcgemma.train.attention import Demands, attention_of_parts, check_attention, choose_attention
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.dtypes import frozen_dtype, set_dtypes, trained_dtype
from hpcgemma.train.freezing import check_freeze, freeze
from hpcgemma.train.liger import check_liger, use_liger
from hpcgemma.train.neftune import add_noise
from hpcgemma.train.pretrained import generation_config_of, load_pretrained
from hpcgemma.train.quantization import (
    check_quantization,
    describe_quantization,
    import_bitsandbytes,
    quantization_config,
    quantize,
    use_one_arithmetic,
)

_META = torch.device("meta")


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model that is ready to be spread over ranks."""

    model: Any
    """A transformers model, or a peft model around one; ``requires_grad`` and precisions are set."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what was chosen, and why."""


def build_model(
    recipe: Recipe,
    prepared: PreparedData,
    device: torch.device,
    *,
    empty: bool = False,
    quant_storage: torch.dtype | None = None,
    weights_on: torch.device | None = None,
) -> BuiltModel:
    """Return the model of a recipe, and sentences on it.

    Args:
        recipe: Model, adapters, precision, kernels.
        prepared: The data, for its vocabulary.
        device: What this rank computes on; attention and kernels are chosen for it.
        empty: Build the same model without numbers, parameters and buffers on the meta device, and read no weights:
            another rank has them. Names, shapes, types and what is trained are the same.
        quant_storage: Type that 4-bit weights pretend to have, for what shards or casts them; None: uint8.
        weights_on: Where the weights are put; None: on ``device``.

    Raises:
        InputError: The recipe contradicts itself, the weights, or this machine.
        ValueError: ``empty`` is asked of a quantized model: its constants are no parameters that could be handed out.
    """
    spec, training = recipe.model, recipe.training
    has_adapters = recipe.lora is not None
    if empty and spec.quantization is not None:
        raise ValueError("a quantized model cannot be built empty")
    frozen, trained = frozen_dtype(training), trained_dtype(training)
    check_freeze(spec.freeze, has_adapters=has_adapters)
    check_quantization(spec.quantization, has_adapters=has_adapters)
    if training.liger_kernels:
        check_liger(device)
    if has_adapters or spec.quantization is not None:
        import_bitsandbytes()  # before peft does
    architecture = architecture_of(spec, prepared)
    demands = Demands.of(architecture.config, has_images=spec.kind == "vision")
    attention, reason = choose_attention(recipe, demands, architecture.model_class, device)
    notes = [f"attention: {attention} ({reason})"]
    place = _META if empty else weights_on or device
    dtype = frozen if has_adapters else trained
    model, sentences = _with_weights(recipe, architecture, attention, dtype, place, quant_storage)
    notes += sentences
    notes += check_attention(model, attention)
    _check(model, architecture, prepared)
    if spec.quantization is not None:
        use_one_arithmetic(model)
        notes.append(describe_quantization(spec.quantization, model, frozen))
    known = model.generation_config.eos_token_id if spec.path is not None else None
    stops = [*(known if isinstance(known, list) else [known]), *prepared.stop_ids]  # a base model knows no turns yet
    model.generation_config.eos_token_id = list(dict.fromkeys(each for each in stops if each is not None))
    if training.liger_kernels:
        notes.append(use_liger(model))
    if recipe.lora is None:
        notes += freeze(model, spec.freeze)
    else:
        model = add_adapters(model, recipe.lora, training.seed, empty=empty)
    set_dtypes(model, trained, None if has_adapters else frozen)
    if training.neftune_alpha is not None:
        add_noise(model, training.neftune_alpha, prepared.special["pad"])
        notes.append(f"noise: NEFTune with alpha {training.neftune_alpha:g} on the input embeddings, in training only")
    return BuiltModel(model, notes)


def _with_weights(
    recipe: Recipe,
    architecture: Architecture,
    attention: str,
    dtype: torch.dtype,
    place: torch.device,
    quant_storage: torch.dtype | None,
) -> tuple[Any, list[str]]:
    """Return the model with random, pretrained or no weights, and sentences on what was read."""
    spec = recipe.model
    torch.manual_seed(recipe.training.seed)
    if place == _META:
        model = _from_config(architecture, attention, dtype, _META)
        if spec.path is not None and (generation := generation_config_of(spec)) is not None:
            model.generation_config = generation
        return model, []
    if spec.path is not None:
        quantization: BitsAndBytesConfig | None = None
        if spec.quantization is not None:
            shape = _from_config(architecture, attention, dtype, _META)
            quantization = quantization_config(spec.quantization, shape, dtype, quant_storage)
        model, notes = load_pretrained(spec, architecture, attention, dtype, place, quantization)
        return model if quantization is not None else model.to(place), notes
    # On the CPU first, whatever the device: so its random numbers are the same everywhere.
    model = _from_config(architecture, attention, dtype, torch.device("cpu"))
    _start_projection(model)
    model = model.to(place)
    if spec.quantization is not None:
        quantize(spec.quantization, model, dtype, quant_storage)
    return model, []


def _from_config(architecture: Architecture, attention: str, dtype: torch.dtype, place: torch.device) -> Any:
    is_vision = architecture.config.get_text_config() is not architecture.config
    build: Any = (AutoModelForImageTextToText if is_vision else AutoModelForCausalLM).from_config
    with place:
        parts = attention_of_parts(architecture.config, attention)
        return build(architecture.config, attn_implementation=parts, dtype=dtype)


def _start_projection(model: Any) -> None:
    """Give Gemma 3's projection of images random weights; transformers leaves them zero, so images would say nothing.

    Where the projection is frozen, as beside adapters, they would say nothing for ever.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):
            torch.nn.init.normal_(parameter, std=parameter.shape[0] ** -0.5)


def _check(model: Any, architecture: Architecture, prepared: PreparedData) -> None:
    if getattr(architecture.config, "tie_word_embeddings", False) and not is_tied(model):
        raise InputError(
            "the weights have an output head apart from the input embeddings, and their config says that they are one",
            "set tie_word_embeddings to false in the config.json beside the weights",
        )
    image, known = prepared.special.get("image"), getattr(architecture.config, "image_token_id", None)
    if prepared.images is not None and image != known:
        raise InputError(
            f"the tokenizer's token {image} stands for a piece of an image, and the model takes {known} for one: they "
            "do not belong together",
            "--set tokenizer.path=null takes the model's own tokenizer",
        )
    weight = model.get_input_embeddings().weight
    rows = getattr(weight, "ds_shape", weight.shape)[0]  # under ZeRO-3 the tensor itself is empty
    # Tokenizers may know tokens that their model does not, as that of Gemma 3 1B knows one for images: what counts are
    # the tokens in the data.
    if prepared.vocab_size > rows and _largest_id(prepared) >= rows:
        raise InputError(
            f"the tokenizer has {prepared.vocab_size} tokens, the model only {rows}: they do not belong together",
            "--set tokenizer.path=null takes the model's own tokenizer",
        )


def _largest_id(prepared: PreparedData) -> int:
    return max(int(rows.ids_L.max()) for rows in (prepared.train, prepared.eval))
