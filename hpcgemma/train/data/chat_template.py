"""A tokenizer's chat template: Jinja from whoever published the model, rendered in a sandbox.

What a template finds there is what transformers gives it (transformers.utils.chat_template_utils, 5.23), with one
difference: today is always the same day, so that rows have the same tokens whenever they are prepared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hpcgemma.train.data.tokenizer import first_line
from hpcgemma.train.failures import DataError

TODAY = datetime(2024, 7, 26)
"""What templates are told is today; the day that Llama 3.1's own template falls back to."""

NO_TEMPLATE_HINT = (
    "--set tokenizer.path=NAME of the model's -it or -Instruct variant, or of a folder with a chat_template.jinja"
)

Message = Mapping[str, str]
"""``role`` and ``content``."""

# What untrusted template code may end in, such as an addition of text and nothing.
_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """Writes conversations as one text."""

    template: jinja2.Template
    tokens: Mapping[str, str]
    """The tokenizer's named tokens, such as ``bos_token``."""

    def render(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """Return the text of a conversation.

        Args:
            messages: All turns.
            asks: The text ends with what opens the next answer.

        Raises:
            DataError: The template refuses the messages, or fails.
        """
        try:
            return self.template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=asks, **self.tokens
            )
        except _ERRORS as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"the tokenizer's chat template refuses the turns {roles}: {first_line(error)}", NO_TEMPLATE_HINT
            ) from None


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """Return the chat template of a tokenizer folder; None where there is none.

    Raises:
        DataError: It is no valid template.
    """
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    source = _source_of(folder, settings)
    if source is None:
        return None
    # transformers marks answers with a tag of its own; what is marked stays as it is.
    source = re.sub(r"{%([-+]?)\s*generation\s*([-+]?)%}", r"{%\1 if true \2%}", source)
    source = re.sub(r"{%([-+]?)\s*endgeneration\s*([-+]?)%}", r"{%\1 endif \2%}", source)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _date}
    try:
        template = environment.from_string(source)
    except jinja2.TemplateError as error:
        raise DataError(
            f"the tokenizer's chat template is not valid Jinja: {first_line(error)}", NO_TEMPLATE_HINT
        ) from None
    return ChatTemplate(template, named_tokens(settings))


def named_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of the tokens that a tokenizer's settings name, such as ``eos_token``."""
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _source_of(folder: Path, settings: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    given = settings.get("chat_template")
    if isinstance(given, list):  # some models have several, by name
        given = {each["name"]: each["template"] for each in given}.get("default")
    return given if isinstance(given, str) else None


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _date(pattern: str) -> str:
    return TODAY.strftime(pattern)


def _to_json(value: Any, **options: Any) -> str:
    """Return JSON without the escapes for HTML of Jinja's own filter."""
    return json.dumps(value, **({"ensure_ascii": False} | options))
