"""Small tokenizers with the turns of well-known models, as their folders look on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "You are a helpful assistant, created by hand.",
    "system user assistant Hello! Goodbye? 1 + 1 = 2\n\nGrüße 你好",
]

# Qwen/Qwen2.5-14B-Instruct, tokenizer_config.json, without its parts for tools.
QWEN = r"""
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""  # noqa: E501

# meta-llama/Meta-Llama-3-8B-Instruct, tokenizer_config.json.
LLAMA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# As that of mistralai/Mistral-7B-Instruct-v0.3: no system message, nothing that opens an answer, a space before it.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)

# microsoft/Phi-3-mini-4k-instruct, tokenizer_config.json.
PHI = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

_GPT_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen(folder: Path, template: str | None = QWEN) -> Path:
    """Write a tokenizer as Qwen2.5's: the end token ends turns too, and none begins a text."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    named = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None}
    settings = {"tokenizer_class": "Qwen2Tokenizer", **named}
    return _write(folder, _bytes(), tokens, settings, template)


def llama(folder: Path, template: str | None = LLAMA) -> Path:
    """Write a tokenizer as Llama 3's: no token for padding, and another for the end of a turn than of a text."""
    tokens = [
        *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"),
        *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ]
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    return _write(folder, _bytes(), tokens, {"tokenizer_class": "PreTrainedTokenizerFast", **named}, template)


def mistral(folder: Path, template: str | None = MISTRAL) -> Path:
    """Write a tokenizer as Mistral's: pieces of SentencePiece, and special tokens that its model knows by text."""
    tokens = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    return _write(folder, _pieces(), tokens, settings, template)


def phi(folder: Path, template: str | None = PHI) -> Path:
    """Write a tokenizer as Phi-3's, whose special tokens take the space that follows."""
    tokens = ["<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    named = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    return _write(folder, _pieces(), tokens, settings, template, rstrip=True)


def _bytes() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_GPT_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return tokenizer


def _write(
    folder: Path,
    tokenizer: Tokenizer,
    tokens: list[str],
    settings: dict[str, Any],
    template: str | None,
    rstrip: bool = False,
) -> Path:
    trainer: Any = trainers.BpeTrainer(
        vocab_size=400,
        # Pieces of other texts are bytes, as those of SentencePiece are.
        special_tokens=[AddedToken(token, rstrip=rstrip, normalized=False) for token in tokens]
        + ([] if tokenizer.normalizer else [f"<0x{byte:02X}>" for byte in range(256)]),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if tokenizer.normalizer else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    folder.mkdir(parents=True)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in tokens]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = settings | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
