"""What the rows of a file are taken for: told from the fields of the first ones, or named by the recipe. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hpcgemma.errors import InputError
from hpcgemma.recipes.types import DataSpec, RowFormat
from hpcgemma.rows.prompt_template import check_prompt_template
from hpcgemma.rows.records import Record

LOOKED_AT = 200
"""Rows looked at, at most."""
IMAGE_PARTS = ("image", "image_url")
"""What the parts of a message that show an image call themselves."""
_SHOWN_FIELDS = 12

VALID_ROWS: dict[RowFormat, str] = {
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
    "alpaca": '{"instruction": "...", "input": "...", "output": "..."}',
    "dolly": '{"instruction": "...", "context": "...", "response": "..."}',
    "prompt_completion": '{"prompt": "...", "completion": "..."}',
    "translation": '{"source_text": "...", "target_text": "..."}',
    "text": '{"text": "..."}',
    "svg_caption": '{"svg": "<svg>...</svg>", "caption": "..."}',
    "image_caption": '{"image": "photos/1.jpg", "caption": "..."}',
}
"""One valid row of each format, for messages and for the docs."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the rows of a file are."""

    format: RowFormat
    fields: Mapping[str, str]
    """The format's own names of its fields, and what the rows call them."""
    evidence: str
    """How that is known, in a few words."""
    shows_images: bool = False
    """Whether the first rows show images."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """Fields that make a row one of a format: the format's names, each with the names that rows use."""

    format: RowFormat
    required: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The format's names."""
        return [*self.required, *self.optional]


_SHAPES: tuple[_Shape, ...] = (
    _Shape("messages", {"messages": ("messages", "conversations")}, {"images": ("images", "image")}),
    _Shape("sharegpt", {"conversations": ("conversations", "conversation")}, {"images": ("images", "image")}),
    _Shape("alpaca", {"instruction": ("instruction",), "output": ("output",)}, {"input": ("input",)}),
    _Shape("dolly", {"instruction": ("instruction",), "response": ("response",)}, {"context": ("context",)}),
    _Shape("prompt_completion", {"prompt": ("prompt",), "completion": ("completion", "response")}),
    _Shape("translation", {"translation": ("translation",)}),
    _Shape("translation", {"source_text": ("source_text",), "target_text": ("target_text",)}),
    _Shape("text", {"text": ("text",)}),
    _Shape("svg_caption", {"svg": ("svg",), "caption": ("caption", "description", "title", "name", "text")}),
    _Shape(
        "image_caption",
        {"image": ("image", "image_path", "file_name"), "caption": ("caption", "captions", "text", "description")},
    ),
)


def detect(records: Sequence[Record], spec: DataSpec, place: str) -> Layout:
    """Tell what the rows of a file are, or check what the recipe says of them.

    A format fits where more than half of the rows have its fields. One that takes in all fields of another goes before
    it: rows with image and text are image_caption, not text.

    Args:
        records: The first rows; some may be broken.
        spec: The recipe's data.
        place: The file, for messages.

    Raises:
        InputError: No format fits, several do, or what the recipe says of format, fields, template or languages does
            not.
    """
    records = records[:LOOKED_AT]
    if not records:
        raise InputError(f"{place} holds no rows", f"rows such as {VALID_ROWS['messages']}")
    layout = _detected(records, spec, place) if spec.format == "auto" else _as_named(records, spec, spec.format, place)
    check_prompt_template(layout.format, layout.fields, [record.fields for record in records], spec, place)
    return replace(layout, shows_images=any(_shows_image(layout, record.fields) for record in records))


def _shows_image(layout: Layout, fields: Mapping[str, Any]) -> bool:
    if layout.format == "image_caption" or fields.get(layout.fields.get("images", "")):
        return True
    messages = fields.get(layout.fields.get("messages", ""))
    contents = (
        [each.get("content") for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []
    )
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return any(part.get("type") in IMAGE_PARTS for part in parts)


def _detected(records: Sequence[Record], spec: DataSpec, place: str) -> Layout:
    shapes = [shape for shape in _SHAPES if set(spec.fields) <= set(shape.names)]
    if not shapes:
        raise InputError(
            f"data.fields names {_listed(spec.fields)}, and no format has {'it' if len(spec.fields) == 1 else 'them'}",
            f"the formats and their fields: {_formats_with_fields()}",
        )
    fitting = [
        (shape, names)
        for shape in shapes
        if (names := _names_of(shape, records, spec)) is not None and _share(shape, names, records) > 0.5
    ]
    fitting = [
        (shape, names)
        for shape, names in fitting
        if not any(_required(shape, names) < _required(other, others) for other, others in fitting)
    ]
    formats = {shape.format for shape, _ in fitting}
    if not fitting:
        hint = "--set data.format=... and --set data.fields.caption=NAME, as the format calls the field and as the rows"
        raise InputError(
            f"{place}: no format fits its rows, which have the fields {_fields_found(records)}; "
            f"the formats and their fields: {_formats_with_fields()}",
            hint,
        )
    if len(formats) > 1:
        candidates = " and ".join(f"{shape.format} ({_listed(names.values())})" for shape, names in fitting)
        raise InputError(
            f"{place}: its rows fit several formats: {candidates}",
            " or ".join(f"--set data.format={shape.format}" for shape, _ in fitting),
        )
    shape, names = fitting[0]
    return Layout(shape.format, names, f"the first {_rows(len(records))} have {_fields_of(names)}")


def _as_named(records: Sequence[Record], spec: DataSpec, named: RowFormat, place: str) -> Layout:
    shapes = [shape for shape in _SHAPES if shape.format == named]
    valid = list(dict.fromkeys(name for shape in shapes for name in shape.names))
    unknown = [name for name in spec.fields if name not in valid]
    if unknown:
        raise InputError(
            f"data.fields names {_listed(unknown)}, which the format {named!r} does not have; valid: {_listed(valid)}",
            f"--set data.fields.{valid[0]}=NAME, or --set data.format=...",
        )
    for shape in shapes:
        names = _names_of(shape, records, spec, least=0.0)
        if names is not None and set(spec.fields) <= set(shape.names):
            return Layout(named, names, f"data.format says so; {_fields_of(names)}")
    missing = [
        name
        for name, known in shapes[-1].required.items()
        if not any(_has(record, spec.fields.get(name), known) for record in records)
    ]
    raise InputError(
        f"{place}: a {named!r} row needs {_listed(shapes[-1].required)}, such as {VALID_ROWS[named]}; none of the "
        f"first {_rows(len(records))} has {_listed(missing)}, their fields are {_fields_found(records)}",
        f"--set data.fields.{missing[0] if missing else valid[0]}=NAME, or --set data.format=auto",
    )


def _has(record: Record, named: str | None, known: tuple[str, ...]) -> bool:
    return any(record.fields.get(name) is not None for name in ((named,) if named else known))


def _names_of(shape: _Shape, records: Sequence[Record], spec: DataSpec, *, least: float = 0.5) -> dict[str, str] | None:
    """Return what the rows call the fields, each found in more than the share `least` of them; None if one is not."""
    names: dict[str, str] = {}
    for name, known in [*shape.required.items(), *shape.optional.items()]:
        candidates = (spec.fields[name],) if name in spec.fields else known
        is_required = name in shape.required
        limit = (least if is_required else 0.0) * len(records)
        counts = {c: sum(record.fields.get(c) is not None for record in records) for c in candidates}
        found = next((c for c in candidates if counts[c] > limit), None)
        if found is not None:
            names[name] = found
        elif is_required or name in spec.fields:
            return None
    return names


def _share(shape: _Shape, names: Mapping[str, str], records: Sequence[Record]) -> float:
    """Return the share of rows whose required fields are there and of the right kind."""
    good = sum(
        all(_is_of_kind(shape.format, name, record.fields.get(names[name])) for name in shape.required)
        for record in records
    )
    return good / len(records)


def _is_of_kind(row_format: RowFormat, name: str, value: Any) -> bool:
    if value is None:
        return False
    if row_format in ("messages", "sharegpt"):
        key = "role" if row_format == "messages" else "from"
        return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]
    if name == "translation":
        return isinstance(value, dict)
    return True


def _required(shape: _Shape, names: Mapping[str, str]) -> set[str]:
    return {names[name] for name in shape.required}


def _fields_found(records: Sequence[Record]) -> str:
    found = list(dict.fromkeys(name for record in records for name in record.fields))
    more = f" and {len(found) - _SHOWN_FIELDS} more" if len(found) > _SHOWN_FIELDS else ""
    return _listed(found[:_SHOWN_FIELDS]) + more if found else "none"


def _formats_with_fields() -> str:
    return "; ".join(f"{shape.format}: {', '.join(shape.names)}" for shape in _SHAPES)


def _fields_of(names: Mapping[str, str]) -> str:
    used = list(names.values())
    if len(used) == 1:
        return f"the field {used[0]!r}"
    return f"the fields {', '.join(map(repr, used[:-1]))} and {used[-1]!r}"


def _listed(names: Iterator[str] | Any) -> str:
    return ", ".join(map(repr, names))


def _rows(count: int) -> str:
    return "row" if count == 1 else f"{count} rows"
