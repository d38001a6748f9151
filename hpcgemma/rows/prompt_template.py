"""The user turn made of a row's fields: in Jinja, or with {field} in braces."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import DataSpec, RowFormat
from hpcgemma.rows.bad_rows import BadRowError

if TYPE_CHECKING:
    import jinja2

TRANSLATION_NAMES = ("source_lang", "src_lang_code", "target_lang", "tgt_lang_code", "text")
"""What a template of translations can name beside the row's own fields."""
WITHOUT_TEMPLATE: tuple[RowFormat, ...] = ("messages", "sharegpt", "text")
"""Formats whose rows have their user turns already, or none."""
_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _nothing_for_null(value: Any) -> Any:
    return "" if value is None else value


@functools.lru_cache(maxsize=32)
def _compiled(text: str) -> tuple[jinja2.Template, frozenset[str]]:
    """Return a template and the names it takes from a row; compiled once per process, as templates do not pickle."""
    import jinja2
    from jinja2 import meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        finalize=_nothing_for_null,
        keep_trailing_newline=True,
    )
    return environment.from_string(text), frozenset(meta.find_undeclared_variables(environment.parse(text)))


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A template of the user turn."""

    text: str
    style: Literal["jinja", "braces"]

    @classmethod
    def of(cls, text: str) -> PromptTemplate:
        """Return the template of a text: Jinja where it has ``{{`` or ``{%``, else names in braces.

        Raises:
            InputError: It is no valid Jinja.
        """
        template = cls(text, "jinja" if "{{" in text or "{%" in text else "braces")
        if template.style == "jinja":
            import jinja2

            try:
                _compiled(text)
            except jinja2.TemplateError as error:
                raise InputError(
                    f"data.prompt_template is not valid Jinja: {error}",
                    "mend it, or name fields in single braces, such as {text}",
                ) from None
        return template

    @property
    def names(self) -> frozenset[str]:
        """Fields that it takes from a row. Braces around anything but a name, as in JSON, are plain text."""
        return _compiled(self.text)[1] if self.style == "jinja" else frozenset(_FIELD.findall(self.text))

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the user turn of a row; a null counts as empty.

        Raises:
            BadRowError: The row does not fit the template.
        """
        if self.style == "jinja":
            try:
                return _compiled(self.text)[0].render(dict(values))
            except Exception as error:  # noqa: BLE001 - what a template calls can fail in any way
                raise BadRowError("bad_template", f"data.prompt_template: {error}") from None
        missing = sorted(self.names - set(values))
        if missing:
            raise BadRowError("bad_template", f"data.prompt_template names {missing[0]!r}; it has {sorted(values)}")
        return _FIELD.sub(lambda match: str(_nothing_for_null(values[match[1]])), self.text)


def check_prompt_template(
    row_format: RowFormat, fields: Mapping[str, str], rows: Sequence[Mapping[str, Any]], spec: DataSpec, place: str
) -> None:
    """Refuse a template that cannot fit the rows.

    Args:
        row_format: What the rows are.
        fields: The format's names of their fields, and the rows' names.
        rows: The first ones.
        spec: The recipe's data.
        place: The file, for messages.

    Raises:
        InputError: The format takes no template; it is no valid Jinja; it names what no row has.
    """
    if spec.prompt_template is None:
        return
    if row_format in WITHOUT_TEMPLATE:
        raise InputError(
            f"data.prompt_template makes a user turn, and data.format {row_format} has {_turns_of(row_format)}; "
            f"so have the rows of {place}",
            "--set data.prompt_template=null",
        )
    template = PromptTemplate.of(spec.prompt_template)
    valid = list(dict.fromkeys(name for row in rows for name in row))
    if row_format == "translation":
        valid += [name for name in TRANSLATION_NAMES if name not in valid]
        _check_languages(template, "translation" in fields, rows, spec, place)
    unknown = sorted(template.names - set(valid))
    if unknown:
        raise InputError(
            f"data.prompt_template names {', '.join(map(repr, unknown))}, which no row of {place} has; "
            f"valid: {', '.join(map(repr, valid))}",
            f"--set data.prompt_template='... {{{valid[0]}}} ...'",
        )


def _turns_of(row_format: RowFormat) -> str:
    return "none" if row_format == "text" else "its own"


def _check_languages(
    template: PromptTemplate, has_codes: bool, rows: Sequence[Mapping[str, Any]], spec: DataSpec, place: str
) -> None:
    languages = spec.languages
    for side, names, code, code_field in (
        ("source", {"source_lang", "src_lang_code"}, languages.source, languages.source_field),
        ("target", {"target_lang", "tgt_lang_code"}, languages.target, languages.target_field),
    ):
        used = sorted(names & template.names)
        if used and not has_codes and code is None and not any(row.get(code_field) for row in rows):
            raise InputError(
                f"data.prompt_template names {used[0]!r}, and the {side} language of {place} is not known: "
                f"data.languages.{side} is null, and no row has the field {code_field!r}",
                f"--set data.languages.{side}=CODE, or --set data.languages.{side}_field=NAME",
            )
