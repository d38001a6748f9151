"""YAML into typed objects: strict, with `extends:` and `--set a.b=c`, and all problems reported at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from hpcgemma import assets
from hpcgemma.errors import ConfigError, InputError, Problem
from hpcgemma.walltime import parse_walltime

ModelT = TypeVar("ModelT", bound=BaseModel)
Key = tuple[str | int, ...]
MAX_EXTENDS = 8
SET_PLACE = "--set"


class Section(BaseModel):
    """One section of a profile or recipe: strict types, no unknown field, frozen once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


def _checked_walltime(text: str) -> str:
    parse_walltime(text)
    return text


Walltime = Annotated[str, AfterValidator(_checked_walltime)]
"""A walltime as sbatch's ``--time`` takes it."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's scalars: 1e-4 is a number; on, no and 12:30:00 are strings."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
):
    # An int matches the float pattern too: the resolver listed first wins.
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(rf"^(?:{_pattern})$"),
        list(_first) + ([""] if _tag == "null" else []),
    )


def parse_yaml(text: str) -> Any:
    """Return the value of a piece of YAML (YAML 1.2 scalars, safe types only).

    Raises:
        yaml.YAMLError: The text is no YAML.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


@dataclass(frozen=True, slots=True)
class Document:
    """A mapping read from files, with the place (file:line) where each of its values was written."""

    data: dict[str, Any]
    places: dict[Key, str] = field(default_factory=dict)


def read_document(path: Path, kind: assets.Kind) -> Document:
    """Read a YAML mapping, merged over the files that it extends (by name or by path).

    Raises:
        ConfigError: A file is no YAML mapping, has a key twice, or extends itself.
        InputError: A file does not exist or cannot be read.
    """
    chain: list[Document] = []
    seen: list[Path] = []
    current: Path | None = path
    while current is not None:
        if current in seen or len(seen) >= MAX_EXTENDS:
            trail = " -> ".join(file.name for file in [*seen, current])
            raise ConfigError(
                str(path),
                [Problem(place=str(seen[-1]), field="extends", message=f"goes in a circle: {trail}")],
                "remove one `extends:`",
            )
        seen.append(current)
        document = _read_one(current)
        chain.append(document)
        base = document.data.pop("extends", None)
        current = None if base is None else _base_of(base, seen[-1], kind)
    merged = Document({})
    for document in reversed(chain):
        merged = _merge(merged, document)
    return merged


def _base_of(base: Any, file: Path, kind: assets.Kind) -> Path:
    if not isinstance(base, str):
        raise ConfigError(
            str(file),
            [Problem(place=str(file), field="extends", message="takes one name or path")],
            f"valid names: {', '.join(assets.names(kind))}",
        )
    beside = file.parent / base
    return beside.resolve() if "/" in base and beside.is_file() else assets.find(kind, base)


def _read_one(path: Path) -> Document:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}", "check the path and its permissions") from error
    loader = _Loader(text)
    places: dict[Key, str] = {}
    problems: list[Problem] = []
    try:
        node = loader.get_single_node()
        if node is not None:
            _note_places(node, (), path, places, problems)
        data = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise ConfigError(
            path.name,
            [Problem(place=f"{path}{line}", field="", message=f"is not valid YAML: {what}")],
            "look at the line named, and at the one above it",
        ) from error
    finally:
        loader.dispose()
    if problems:
        raise ConfigError(path.name, problems, "keep one of the two")
    if not isinstance(data, dict):
        raise ConfigError(
            path.name,
            [Problem(place=str(path), field="", message="is not a mapping of fields")],
            "write `field: value` lines",
        )
    return Document(data, places)


def _note_places(node: yaml.Node, key: Key, path: Path, places: dict[Key, str], problems: list[Problem]) -> None:
    places[key] = f"{path}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key_node, value_node in node.value:
            name = str(key_node.value)
            if name in names:
                problems.append(
                    Problem(
                        place=f"{path}:{key_node.start_mark.line + 1}",
                        field=".".join(map(str, (*key, name))),
                        message="is written twice",
                    )
                )
            names.add(name)
            _note_places(value_node, (*key, name), path, places, problems)
            places[(*key, name)] = f"{path}:{key_node.start_mark.line + 1}"
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _note_places(item, (*key, index), path, places, problems)


def _merge(base: Document, over: Document) -> Document:
    """Merge mappings key by key; anything else (lists too) is replaced whole."""

    def merged(low: Any, high: Any) -> Any:
        if isinstance(low, dict) and isinstance(high, dict):
            return {**low, **{name: merged(low.get(name), value) for name, value in high.items()}}
        return high

    return Document(merged(base.data, over.data), {**base.places, **over.places})


def with_settings(document: Document, settings: Sequence[str]) -> Document:
    """Return the document with `a.b=c` settings applied; the value is read as YAML.

    Raises:
        ConfigError: A setting has no `=`, an empty field, or a value that is no YAML; all such are listed.
    """
    problems: list[Problem] = []
    result = document
    for setting in settings:
        name, equals, text = setting.partition("=")
        parts = name.strip().split(".")
        if not equals or not all(parts):
            problems.append(Problem(place=SET_PLACE, field=setting, message="is not of the form a.b=c"))
            continue
        try:
            value = parse_yaml(text)
        except yaml.YAMLError:
            problems.append(Problem(place=SET_PLACE, field=name, message=f"{text!r} is no YAML value", hint="quote it"))
            continue
        nested: Any = value
        for part in reversed(parts):
            nested = {part: nested}
        place: dict[Key, str] = {tuple(parts[:depth]): SET_PLACE for depth in range(1, len(parts) + 1)}
        result = _merge(result, Document(nested, place))
    if problems:
        raise ConfigError("--set", problems, "for example: --set training.epochs=1")
    return result


def build(
    model: type[ModelT], document: Document, *, subject: str, foreign_names: Mapping[str, str] | None = None
) -> ModelT:
    """Return the typed object of a document.

    Args:
        model: Its type.
        document: What was read.
        subject: What the document is, for messages.
        foreign_names: Names of fields in other tools, and where they are here.

    Raises:
        ConfigError: Every unknown field, wrong type and missing value, each with its place and what is valid.
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        names = foreign_names or {}
        problems = [_problem(model, document, detail, names) for detail in error.errors(include_url=False)]
        raise ConfigError(subject, problems, "mend what is listed; nothing was submitted") from error


def _problem(model: type[BaseModel], document: Document, detail: Any, foreign_names: Mapping[str, str]) -> Problem:
    key: Key = tuple(detail["loc"])
    name = ".".join(map(str, key))
    place = next(
        (document.places[key[:depth]] for depth in range(len(key), -1, -1) if key[:depth] in document.places),
        "",
    )
    match detail["type"]:
        case "extra_forbidden":
            hint = _where_instead(model, key, foreign_names)
            return Problem(place=place, field=name, message="unknown field", hint=hint)
        case "missing":
            return Problem(place=place, field=name, message="is missing", hint=_doc(model, key))
        case "literal_error":
            expected = detail["ctx"]["expected"]
            close = difflib.get_close_matches(str(detail["input"]), re.findall(r"'([^']*)'", expected), n=1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            return Problem(
                place=place,
                field=name,
                message=f"{detail['input']!r} is not valid",
                hint=f"{meant}valid: {expected}",
            )
        case _:
            message = str(detail["msg"]).removeprefix("Value error, ")
            shown = detail["input"] if isinstance(detail["input"], (str, int, float, bool, type(None))) else "this"
            return Problem(
                place=place,
                field=name,
                message=f"{shown!r}: {message[:1].lower()}{message[1:]}" if shown != "this" else message,
                hint=_doc(model, key),
            )


def _where_instead(model: type[BaseModel], key: Key, foreign_names: Mapping[str, str]) -> str:
    """Return where an unknown field is: what other tools call so, one of the same name elsewhere, or a close one."""
    name = str(key[-1])
    if name in foreign_names:
        return f"here it is {foreign_names[name]}"
    valid = sorted(_section(model, key[:-1]).model_fields)
    close = difflib.get_close_matches(name, valid, n=1)
    elsewhere = [path for path in _all_fields(model) if path.rpartition(".")[2] == name]
    if len(elsewhere) == 1 and not close:
        return f"it is {elsewhere[0]}"
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}valid: {', '.join(valid)}"


def _all_fields(model: type[BaseModel]) -> Iterator[str]:
    """Yield the dotted path of every field."""
    for name, info in model.model_fields.items():
        yield name
        for section in _models_in(info.annotation):
            yield from (f"{name}.{path}" for path in _all_fields(section))


def _section(model: type[BaseModel], key: Key) -> type[BaseModel]:
    """Return the model that a key leads to, through optional and listed sections."""
    current = model
    for part in key:
        if isinstance(part, int):
            continue
        info = current.model_fields.get(part)
        found = _models_in(info.annotation) if info else []
        if not found:
            return current
        current = found[0]
    return current


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _doc(model: type[BaseModel], key: Key) -> str:
    names = [part for part in key if isinstance(part, str)]
    info = _section(model, tuple(names[:-1])).model_fields.get(names[-1]) if names else None
    return " ".join((info.description or "").split()) if info else ""
