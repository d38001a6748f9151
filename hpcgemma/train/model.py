"""The model: from random weights of a shape, or from pretrained ones, in the recipe's precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.import_utils import is_flash_attn_2_available

from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.recipes.types import ModelSpec, Recipe
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.tokenizer import first_line

VOCABULARY_MULTIPLE = 8
"""A random start pads its vocabulary to a multiple of this, which tensor cores like."""


def build_model(recipe: Recipe, prepared: PreparedData, device: torch.device) -> tuple[nn.Module, str]:
    """Return the model on its device, and one sentence on its attention.

    Frozen weights (those under adapters) are held in the recipe's precision; trained ones are always fp32 and, with
    bf16, computed on under autocast.

    Raises:
        InputError: The recipe and the weights do not belong together.
        HpcGemmaError: The weights are not there, or this version does not train them.
    """
    spec = recipe.model
    if spec.quantization is not None:
        raise HpcGemmaError("model.quantization is not trained by this version yet", "--set model.quantization=null")
    config = _config(spec, prepared)
    attention, reason = choose_attention(spec.attention, config, device)
    frozen_bf16 = recipe.lora is not None and recipe.training.precision == "bf16"
    dtype = torch.bfloat16 if frozen_bf16 else torch.float32
    torch.manual_seed(recipe.training.seed)
    if spec.path is None:
        from_config: Any = AutoModelForCausalLM.from_config
        model = from_config(config, attn_implementation=attention, dtype=dtype)
        model.generation_config.eos_token_id = [prepared.special["eos"], prepared.special["end_of_turn"]]
    else:
        model = _pretrained(spec.path, spec.revision, config, attention, dtype, device)
    _check_vocabulary(model, prepared)
    module: nn.Module = model.to(device)
    return module, f"attention: {attention} ({reason})"


def choose_attention(wanted: str, config: Any, device: torch.device) -> tuple[str, str]:
    """Return the attention implementation and why.

    Gemma 2 caps its attention scores with a tanh, which sdpa cannot; taking sdpa silently would change the model.
    flash-attn is taken only where it is installed: transformers would else fetch a kernel from the hub.

    Args:
        wanted: What the recipe says.
        config: The model's config.
        device: What it runs on.

    Raises:
        InputError: The recipe's choice cannot run here, or is not exact for this model.
    """
    softcap = getattr(config, "attn_logit_softcapping", None)
    has_flash = device.type == "cuda" and is_flash_attn_2_available()
    if wanted == "auto":
        if softcap is None:
            return "sdpa", "no softcap on the attention scores, so torch's kernels are exact"
        if has_flash:
            return "flash_attention_2", f"it applies the softcap of {softcap:g}"
        missing = "flash-attn is not installed" if device.type == "cuda" else "there is no GPU for flash-attn"
        return "eager", f"it applies the softcap of {softcap:g}; sdpa cannot, and {missing}"
    if wanted == "sdpa" and softcap is not None:
        raise InputError(
            f"model.attention sdpa cannot apply this model's softcap of {softcap:g}", "--set model.attention=auto"
        )
    if wanted == "flash_attention_2" and not has_flash:
        raise InputError(
            "model.attention flash_attention_2 needs a GPU and the package flash-attn",
            "--set model.attention=auto, or install flash-attn",
        )
    return wanted, "the recipe says so"


def check_config(expected: Mapping[str, Any], found: Mapping[str, Any], path: str) -> None:
    """Compare what a recipe expects of pretrained weights with their config.

    Raises:
        InputError: A field differs or is not there.
    """
    for field, value in expected.items():
        if field not in found or found[field] != value:
            present = repr(found[field]) if field in found else "no such field"
            raise InputError(
                f"model.config.{field}: the recipe expects {value!r}, the weights at {path!r} have {present}",
                f"correct model.path, or drop model.config.{field} from the recipe",
            )


def _config(spec: ModelSpec, prepared: PreparedData) -> Any:
    special = prepared.special
    if spec.path is None:
        fields = dict(spec.config)
        model_type = fields.pop("model_type", None)
        if model_type is None:
            raise InputError(
                "model.path is null and model.config has no model_type", "--set model.config.model_type=gemma2"
            )
        padded = -(-prepared.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        fields.setdefault("vocab_size", padded)
        ids = {f"{name}_token_id": special[name] for name in ("pad", "eos", "bos")}
        try:
            return AutoConfig.for_model(model_type, **fields, **ids)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"model.config is no config of {model_type!r}: {first_line(error)}", "correct model.config"
            ) from None
    try:
        config = AutoConfig.from_pretrained(spec.path, revision=spec.revision, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no model at {spec.path!r}, neither as a folder nor in the hub cache: {first_line(error)}",
            f"hf download {spec.path}  (on a node with internet), or --set model.path=FOLDER",
        ) from None
    text_config = config.get_text_config()
    found = text_config.to_dict()
    if spec.config.get("model_type") == config.model_type:
        found["model_type"] = config.model_type
    check_config(spec.config, found, spec.path)
    return config


def _pretrained(
    path: str,
    revision: str | None,
    config: Any,
    attention: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    options: dict[str, Any] = {
        "revision": revision,
        "local_files_only": True,
        "attn_implementation": attention,
        "dtype": dtype,
    }
    if device.type == "cuda":
        options["device_map"] = {"": device}  # straight to the GPU: no rank holds the weights in host memory
    if config.model_type == "gemma3":
        # The checkpoint has a vision tower; text is trained on the text model alone. Without the mapping, transformers
        # 5.23 finds none of the weights and starts from random ones, with no more than a warning.
        from transformers import Gemma3ForCausalLM

        options["key_mapping"] = {
            r"^(model\.language_model|language_model\.model)\.": "model.",
            r"^language_model\.lm_head\.": "lm_head.",
        }
        load: Any = Gemma3ForCausalLM.from_pretrained
        config = config.text_config
    else:
        load = AutoModelForCausalLM.from_pretrained
    model, info = load(path, config=config, output_loading_info=True, **options)
    faulty = sorted(info["missing_keys"]) + sorted(str(each) for each in info["mismatched_keys"])
    if faulty:
        raise InputError(
            f"the weights at {path!r} are incomplete: {len(faulty)} are missing or of another shape, "
            f"such as {faulty[0]}",
            "check the download: hf download again, or correct model.path",
        )
    return model


def _check_vocabulary(model: Any, prepared: PreparedData) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if prepared.vocab_size > rows:
        raise InputError(
            f"the tokenizer has {prepared.vocab_size} tokens, the model only {rows}: they do not belong together",
            "--set tokenizer.path=null takes the model's own tokenizer",
        )
