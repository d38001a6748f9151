"""Which model a recipe means: its config and its class, from a random start's shape or from pretrained weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import ModelSpec
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.tokenizer import first_line

VOCABULARY_MULTIPLE = 8
"""A random start pads its vocabulary to a multiple of this, which tensor cores like."""

_TYPO_LIKENESS = 0.85
"""From which likeness on an unknown field is taken for a misspelt one; real ones that a config merely converts, such as
sliding_window_pattern beside sliding_window, are below."""


_IMAGE_TOKEN_NAMES = ("image_token_id", "image_token_index")
"""What configs call the token that stands for a piece of an image."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model before it has weights."""

    config: Any
    """Its transformers config."""
    model_class: Any
    """Its class in transformers."""
    is_part: bool
    """Whether the checkpoint holds more than this model, such as a vision tower beside this text model."""


def architecture_of(spec: ModelSpec, prepared: PreparedData) -> Architecture:
    """Return config and class of a recipe's model; of pretrained weights, only the config is read.

    Raises:
        InputError: There is no such model, or it is none that is trained here.
    """
    config = _random_config(spec, prepared) if spec.path is None else _pretrained_config(spec, spec.path)
    name = spec.path or config.model_type
    if spec.kind == "vision":
        return Architecture(config, _class_in(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, config, name, spec.kind), False)
    text, is_part = config.get_text_config(), False
    if text is not config:
        if spec.path is None:
            raise InputError(
                f"model.config.model_type {config.model_type!r} is a model of more than text",
                f"--set model.config.model_type={text.model_type} (its text model), or --set model.kind=vision",
            )
        # How the parts are tied is said once, for the whole.
        text.tie_word_embeddings = getattr(config, "tie_word_embeddings", text.tie_word_embeddings)
        is_part = True
    _check_causal(config, text, name)
    return Architecture(text, _class_in(MODEL_FOR_CAUSAL_LM_MAPPING, text, name, spec.kind), is_part)


def check_config(expected: Mapping[str, Any], found: Mapping[str, Any], path: str, place: str = "model.config") -> None:
    """Compare what a recipe expects of pretrained weights with their config, nested sections field by field.

    Raises:
        InputError: A field differs or is not there.
    """
    for field, value in expected.items():
        name = f"{place}.{field}"
        if isinstance(value, Mapping) and isinstance(found.get(field), Mapping):
            check_config(value, found[field], path, name)
        elif field not in found or found[field] != value:
            present = repr(found[field]) if field in found else "no such field"
            raise InputError(
                f"{name}: the recipe expects {value!r}, the weights at {path!r} have {present}",
                f"correct model.path, or drop {name} from the recipe",
            )


def _random_config(spec: ModelSpec, prepared: PreparedData) -> Any:
    shape: dict[str, Any] = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in spec.config.items()
    }
    model_type = shape.pop("model_type", None)
    if model_type is None:
        raise InputError(
            "model.path is null and model.config has no model_type", "--set model.config.model_type=gemma2"
        )
    default = _config_of(model_type, {})
    is_vision = spec.kind == "vision"
    section: dict[str, Any] = shape.setdefault("text_config", {}) if is_vision else shape
    section |= {f"{name}_token_id": prepared.special.get(name) for name in ("pad", "eos", "bos")}
    if is_vision and "image" in prepared.special:
        known = default.to_dict()
        shape = {name: prepared.special["image"] for name in _IMAGE_TOKEN_NAMES if name in known} | shape
    marks = _unplaced_marks(default, shape) if is_vision else []
    needed = prepared.vocab_size + len(marks)
    vocab_size = section.setdefault("vocab_size", -(-needed // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE)
    if marks and vocab_size < needed:
        raise InputError(
            f"model.config.text_config.vocab_size {vocab_size} has no room for {prepared.vocab_size} tokens of the "
            f"tokenizer and {len(marks)} that stand for images",
            f"--set model.config.text_config.vocab_size={needed} or more",
        )
    if hasattr(default.get_text_config(), "vocab_size_per_layer_input"):  # a second table, of Gemma 3n and 4
        section.setdefault("vocab_size_per_layer_input", vocab_size)
    shape |= {name: vocab_size - 1 - place for place, name in enumerate(marks)}
    config = _config_of(model_type, shape)
    _check_spelling(config, spec.config, "model.config")
    return config


def _config_of(model_type: str, shape: Mapping[str, Any]) -> Any:
    try:
        return AutoConfig.for_model(model_type, **shape)
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        what = " ".join(str(error).split())
        raise InputError(f"model.config is no config of {model_type!r}: {what}", "correct model.config") from None


def _unplaced_marks(default: Any, shape: Mapping[str, Any]) -> list[str]:
    """Return the fields for tokens that stand for images, or for where one begins and ends, without a number."""
    return [
        name
        for name, value in default.to_dict().items()
        if name.endswith(("_token_id", "_token_index")) and isinstance(value, int) and name not in shape
    ]


def _check_spelling(config: Any, shape: Mapping[str, Any], place: str) -> None:
    """Refuse a field that a config takes without knowing it: a random start would silently have another shape."""
    known = [each.name for each in fields(config)]
    for name, value in shape.items():
        if isinstance(value, Mapping) and hasattr(getattr(config, name, None), "to_dict"):
            _check_spelling(getattr(config, name), value, f"{place}.{name}")
        close = difflib.get_close_matches(name, known, n=1, cutoff=_TYPO_LIKENESS)
        if name not in (*known, *config.attribute_map, "model_type") and close:
            raise InputError(
                f"{place}.{name}: {config.model_type} has no such field; did you mean {close[0]!r}?",
                f"correct {place}.{name}",
            )


def _pretrained_config(spec: ModelSpec, path: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(path, revision=spec.revision, local_files_only=True)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise InputError(
            f"no model at {path!r}, neither as a folder nor in the hub cache: {first_line(error)}",
            f"hf download {path}  (on a node with internet), or --set model.path=FOLDER",
        ) from None
    if spec.kind == "vision":
        found = config.to_dict()
    else:
        text = config.get_text_config()
        found = text.to_dict()
        if spec.config.get("model_type") == config.model_type:
            found["model_type"] = config.model_type
    check_config(spec.config, found, path)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(
            f"the weights at {path!r} are quantized already",
            "--set model.path to the whole weights; model.quantization quantizes them while they are loaded",
        )
    return config


def _check_causal(config: Any, text: Any, name: str) -> None:
    """Refuse models that do not predict the next token from those before it.

    Raises:
        InputError: It is one of these.
    """
    problem = None
    architectures = getattr(config, "architectures", None) or []
    if getattr(text, "use_bidirectional_attention", None) in (True, "all"):
        problem = "its tokens see those that come later, as in EmbeddingGemma"
    elif config.is_encoder_decoder:
        problem = "it has an encoder and a decoder"
    elif getattr(text, "is_decoder", True) is False:
        problem = "it is an encoder"
    elif architectures and not any(
        each.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for each in architectures
    ):
        problem = f"its weights are of a {architectures[0]}"
    if problem is not None:
        raise _not_trained(name, "text", problem)


def _class_in(mapping: Any, config: Any, name: str, kind: str) -> Any:
    if type(config) not in mapping:
        raise _not_trained(name, kind, f"transformers has no such model of type {config.model_type!r}")
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _not_trained(name: str, kind: str, problem: str) -> InputError:
    what = "causal language model" if kind == "text" else "model of images and text"
    return InputError(f"{name!r} is no {what}: {problem}", f"--set model.path to a {what}")
