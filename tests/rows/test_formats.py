from __future__ import annotations

import json
from typing import Any

import pytest

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import DataSpec
from hpcgemma.rows.formats import VALID_ROWS, Layout, detect
from hpcgemma.rows.records import Record


def told(*rows: dict[str, Any], **spec: Any) -> Layout:
    return detect([Record(line, row) for line, row in enumerate(rows, 1)], DataSpec(**spec), "rows.jsonl")


def refused(*rows: dict[str, Any], **spec: Any) -> tuple[str, str]:
    with pytest.raises(InputError) as raised:
        told(*rows, **spec)
    return raised.value.problem, raised.value.hint


@pytest.mark.parametrize("row_format", VALID_ROWS)
def test_a_valid_row_is_taken_for_its_format_and_passes_where_the_recipe_names_it(row_format: Any) -> None:
    row = json.loads(VALID_ROWS[row_format])
    assert told(row).format == row_format
    assert told(row, format=row_format).fields == told(row).fields


def test_the_evidence_names_the_rows_own_fields() -> None:
    assert told({"svg": "<svg/>", "name": "sun", "tags": ["day"]}, {"svg": "<svg/>", "name": "moon"}) == Layout(
        "svg_caption", {"svg": "svg", "caption": "name"}, "the first 2 rows have the fields 'svg' and 'name'"
    )


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"pmid": "1", "text": "a", "question": "b", "answer": "c"}, "text"),
        ({"translation": {"en": "a", "hau": "b"}}, "translation"),
        ({"prompt": "a", "response": "b"}, "prompt_completion"),
        ({"svg": "<svg/>", "text": "a"}, "svg_caption"),
        ({"image": "a.png", "text": "a"}, "image_caption"),
        ({"conversations": [{"role": "user", "content": "a"}]}, "messages"),
    ],
)
def test_what_takes_in_all_fields_of_another_format_goes_before_it(row: dict[str, Any], expected: str) -> None:
    assert told(row).format == expected


def test_some_broken_rows_do_not_change_what_the_others_are() -> None:
    good = {"instruction": "a", "output": "b"}
    assert told({"x": 1}, good, {}, good, good).format == "alpaca"


@pytest.mark.parametrize(
    ("row", "first", "second"),
    [
        ({"messages": [{"role": "user", "content": "a"}], "text": "a"}, "messages", "text"),
        ({"prompt": "a", "completion": "b", "text": "a"}, "prompt_completion", "text"),
        ({"instruction": "a", "output": "b", "response": "b"}, "alpaca", "dolly"),
        ({"instruction": "a", "input": "", "output": "b", "text": "ab"}, "alpaca", "text"),
        ({"svg": "<svg/>", "image": "a.png", "caption": "b"}, "svg_caption", "image_caption"),
    ],
)
def test_rows_that_fit_two_formats_are_refused_with_both_until_the_recipe_names_one(
    row: dict[str, Any], first: Any, second: str
) -> None:
    problem, hint = refused(row)
    assert problem.startswith(f"rows.jsonl: its rows fit several formats: {first} (")
    assert hint == f"--set data.format={first} or --set data.format={second}"
    assert told(row, format=first).format == first


def test_rows_of_no_format_are_refused_with_their_fields() -> None:
    problem, hint = refused({"a": 1, "b": 2})
    assert problem.startswith("rows.jsonl: no format fits its rows, which have the fields 'a', 'b'; the formats and")
    assert "--set data.fields.caption=NAME" in hint
    assert refused()[0] == "rows.jsonl holds no rows"


def test_fields_of_other_names_are_found_by_the_recipe_s_mapping() -> None:
    layout = told({"drawing": "<svg/>", "label": "sun"}, fields={"svg": "drawing", "caption": "label"})
    assert (layout.format, layout.fields) == ("svg_caption", {"svg": "drawing", "caption": "label"})


def test_a_named_format_is_checked_against_the_rows() -> None:
    assert refused({"prompt": "a"}, format="prompt_completion") == (
        "rows.jsonl: a 'prompt_completion' row needs 'prompt', 'completion', such as "
        '{"prompt": "...", "completion": "..."}; none of the first row has \'completion\', their fields are \'prompt\'',
        "--set data.fields.completion=NAME, or --set data.format=auto",
    )


def test_a_mapping_of_a_field_that_the_format_does_not_have_is_refused() -> None:
    assert refused({"text": "a"}, format="text", fields={"caption": "a"}) == (
        "data.fields names 'caption', which the format 'text' does not have; valid: 'text'",
        "--set data.fields.text=NAME, or --set data.format=...",
    )
    assert refused({"text": "a"}, fields={"captoin": "a"})[0] == "data.fields names 'captoin', and no format has it"
