from __future__ import annotations

from typing import Any

import pytest

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import DataSpec
from hpcgemma.rows.bad_rows import BadRowError
from hpcgemma.rows.formats import detect
from hpcgemma.rows.prompt_template import PromptTemplate
from hpcgemma.rows.records import Record


def test_braces_take_names_and_leave_all_else() -> None:
    template = PromptTemplate.of('{a}, {"b": {a}}, {}, {a b}')
    assert template.names == frozenset({"a"})
    assert template.render({"a": "{b}", "b": 1}) == '{b}, {"b": {b}}, {}, {a b}'


def test_jinja_takes_fields_and_tests() -> None:
    template = PromptTemplate.of("{{ a }}{% if b %} and {{ b }}{% endif %}")
    assert [template.render({"a": 1, "b": b}) for b in ("x", None)] == ["1 and x", "1"]


@pytest.mark.parametrize("text", ["{{ a.b.c }}", "{{ a.__class__.__mro__ }}", "{{ 1 // 0 }}", "{{ gone }}"])
def test_a_row_that_does_not_fit_its_template_is_bad(text: str) -> None:
    with pytest.raises(BadRowError) as raised:
        PromptTemplate.of(text).render({"a": {}})
    assert raised.value.reason == "bad_template"


def test_a_row_without_a_field_in_braces_is_bad() -> None:
    with pytest.raises(BadRowError, match="names 'b'; it has \\['a'\\]"):
        PromptTemplate.of("{b}").render({"a": 1})


@pytest.mark.parametrize(
    ("row", "spec", "said"),
    [
        ({"text": "a"}, {"prompt_template": "{text}"}, "data.prompt_template makes a user turn, and data.format text"),
        ({"prompt": "a", "completion": "b"}, {"prompt_template": "{{ a "}, "data.prompt_template is not valid Jinja"),
        (
            {"prompt": "a", "completion": "b"},
            {"prompt_template": "{promt}"},
            "names 'promt', which no row of rows.jsonl has; valid: 'prompt', 'completion'",
        ),
        (
            {"source_text": "a", "target_text": "b"},
            {"prompt_template": "{source_lang}: {text}"},
            "names 'source_lang', and the source language of rows.jsonl is not known",
        ),
    ],
)
def test_a_template_that_fits_no_row_is_refused(row: dict[str, Any], spec: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as raised:
        detect([Record(1, row)], DataSpec(**spec), "rows.jsonl")
    assert said in raised.value.problem
