"""A row of any format as a conversation or a document."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcgemma.recipes.types import DataSpec
from hpcgemma.rows.bad_rows import BadRowError, Reason
from hpcgemma.rows.conversation import Content, Conversation, Document, Image, Turn
from hpcgemma.rows.formats import IMAGE_PARTS, Layout
from hpcgemma.rows.languages import language_name
from hpcgemma.rows.prompt_template import PromptTemplate

DEFAULT_INSTRUCTIONS = {"svg_caption": "Describe this SVG drawing.", "image_caption": "Describe this image."}
TRANSLATION_PROMPT = "Translate the following text from {source_lang} to {target_lang}:\n\n{text}"
TRANSLATION_PROMPT_WITHOUT_LANGUAGES = "Translate the following text:\n\n{text}"

IMAGE_MARK = "<image>"
"""Where in a message an image of its row goes, as LLaVA's data have it."""

_ROLES = {"user": "user", "assistant": "model", "model": "model", "system": "system"}
_SHAREGPT_ROLES = {"human": "user", "gpt": "model", **_ROLES}


class Converter:
    """Turns the rows of a file into what they mean; it can be sent to worker processes.

    Alpaca's and Dolly's prompt is the instruction and, where there is one, the input or context after an empty line;
    no sentence such as "Below is an instruction" goes before it.

    Args:
        layout: What the rows are.
        spec: The recipe's data.
        folder: Folder of the file; paths of images are relative to it.
    """

    def __init__(self, layout: Layout, spec: DataSpec, folder: Path) -> None:
        self._layout = layout
        self._spec = spec
        self._folder = folder
        self._template = None if spec.prompt_template is None else PromptTemplate.of(spec.prompt_template)

    def __call__(self, fields: Mapping[str, Any]) -> Content:
        """Return what a row means.

        Raises:
            BadRowError: It cannot be trained on; says why.
            InputError: A language's name needs a package that is not installed.
        """
        match self._layout.format:
            case "text":
                text = self._text(fields, "text")
                if not text.strip():
                    raise BadRowError("empty_answer", "its text is empty")
                return Document(text)
            case "messages":
                return self._from_messages(fields, "messages", "role", "content", _ROLES)
            case "sharegpt":
                return self._from_messages(fields, "conversations", "from", "value", _SHAREGPT_ROLES)
            case "translation":
                question, answer = self._translation(fields)
                return self._exchange(question, answer)
            case "alpaca":
                return self._asked(fields, self._instruction(fields, "input"), self._text(fields, "output"))
            case "dolly":
                return self._asked(fields, self._instruction(fields, "context"), self._text(fields, "response"))
            case "prompt_completion":
                return self._asked(fields, self._text(fields, "prompt"), self._text(fields, "completion"))
            case "svg_caption":
                question = f"{self._caption_instruction()}\n{self._text(fields, 'svg')}"
                return self._asked(fields, question, self._text(fields, "caption"))
            case "image_caption":
                image = _image(self._value(fields, "image"), self._folder)
                return self._asked(fields, self._caption_instruction(), self._first_caption(fields), (image,))

    def _caption_instruction(self) -> str:
        return self._spec.instruction or DEFAULT_INSTRUCTIONS[self._layout.format]

    def _asked(
        self, fields: Mapping[str, Any], question: str, answer: str, images: tuple[Image, ...] = ()
    ) -> Conversation:
        if self._template is not None:
            question = self._template.render(fields)
        return self._exchange(question, answer, images)

    def _exchange(self, question: str, answer: str, images: tuple[Image, ...] = ()) -> Conversation:
        if not answer.strip():
            raise BadRowError("empty_answer", "its answer is empty")
        asked = _checked(question, "the prompt")
        return Conversation((Turn("user", asked.strip() if images else asked, images), Turn("model", answer)))

    def _instruction(self, fields: Mapping[str, Any], more: str) -> str:
        instruction = self._text(fields, "instruction")
        name = self._layout.fields.get(more)
        if name is None or fields.get(name) is None:
            return instruction
        added = self._text(fields, more)
        return f"{instruction}\n\n{added}" if added.strip() else instruction

    def _first_caption(self, fields: Mapping[str, Any]) -> str:
        value = self._value(fields, "caption")
        if not isinstance(value, list):
            return self._text(fields, "caption")
        if not value:
            raise BadRowError("empty_answer", "its answer is empty")
        return _checked(value[0], f"field {self._layout.fields['caption']!r}")

    def _value(self, fields: Mapping[str, Any], name: str) -> Any:
        return _value(fields, self._layout.fields.get(name, name))

    def _text(self, fields: Mapping[str, Any], name: str) -> str:
        return _text(fields, self._layout.fields.get(name, name))

    def _translation(self, fields: Mapping[str, Any]) -> tuple[str, str]:
        """Return question and answer of a translation."""
        languages = self._spec.languages
        source = languages.source or _code(fields, languages.source_field)
        target = languages.target or _code(fields, languages.target_field)
        if "translation" in self._layout.fields:
            texts = self._value(fields, "translation")
            if not isinstance(texts, dict):
                raise BadRowError("wrong_type", f"field 'translation' is no object but {texts!r:.60}")
            texts = {code: text for code, text in texts.items() if text is not None}
            source = source or next((code for code in texts if code != target), None)
            target = target or next((code for code in texts if code != source), None)
            if source is None or target is None:
                raise BadRowError("missing_field", f"its translation has the languages {sorted(texts)}, not two")
            text, answer = (_text(texts, code) for code in (source, target))
        else:
            text, answer = self._text(fields, "source_text"), self._text(fields, "target_text")
        known = source is not None and target is not None
        template = self._template or PromptTemplate.of(
            TRANSLATION_PROMPT if known else TRANSLATION_PROMPT_WITHOUT_LANGUAGES
        )
        values = {**fields, "text": text}
        for name, code_name, code in (
            ("source_lang", "src_lang_code", source),
            ("target_lang", "tgt_lang_code", target),
        ):
            if code is not None:
                values[code_name] = code
                if name in template.names:
                    values[name] = language_name(code)
        return template.render(values), answer

    def _from_messages(
        self, fields: Mapping[str, Any], name: str, role_key: str, text_key: str, roles: Mapping[str, str]
    ) -> Conversation:
        field = self._layout.fields.get(name, name)
        messages = fields.get(field)
        if not isinstance(messages, list) or not messages:
            reason: Reason = "missing_field" if messages is None else "wrong_type" if messages else "bad_turns"
            raise BadRowError(reason, f"field {field!r} is not a list of messages; it has the fields {sorted(fields)}")
        beside = self._images_beside(fields)
        remaining = iter(beside)
        system = ""
        turns: list[Turn] = []
        for position, message in enumerate(messages):
            place = f"{field}[{position}]"
            if not isinstance(message, dict):
                raise BadRowError("wrong_type", f"{place} is no object")
            given = message.get(role_key)
            role = roles.get(given) if isinstance(given, str) else None
            if role is None:
                raise BadRowError("bad_turns", f"{place} has {role_key} {given!r}; valid: {', '.join(roles)}")
            text, images = self._content(message, text_key, place, remaining)
            if images and role != "user":
                raise BadRowError("bad_turns", f"{place} shows an image; only the user may")
            if role == "system":
                if position:
                    raise BadRowError("bad_turns", f"{place} is a system message; only the first may be")
                system = text
                continue
            expected = "model" if len(turns) % 2 else "user"
            if role != expected:
                who = "assistant" if expected == "model" else "user"
                raise BadRowError(
                    "bad_turns",
                    f"{place} is from {given!r}; user and assistant take turns, and here it is {who}'s",
                )
            if role == "model" and not text.strip():
                raise BadRowError("empty_answer", f"{place} is an empty answer")
            turns.append(Turn("model" if role == "model" else "user", text, images))
        if not turns or turns[-1].role != "model":
            raise BadRowError(
                "bad_turns", "the last message is not the assistant's, so there is nothing to learn from it"
            )
        left = tuple(remaining)
        if left and left != beside:
            raise BadRowError("bad_turns", f"{len(left)} of its {len(beside)} images have no place in its messages")
        if left:  # no message says where they go: before the first
            turns[0] = Turn("user", turns[0].text.strip(), left)
        return Conversation(tuple(turns), system)

    def _images_beside(self, fields: Mapping[str, Any]) -> tuple[Image, ...]:
        """Return the images that a row of messages keeps in a field of their own."""
        name = self._layout.fields.get("images")
        value = None if name is None else fields.get(name)
        if value is None:
            return ()
        return tuple(_image(each, self._folder) for each in (value if isinstance(value, list) else [value]))

    def _content(
        self, message: Mapping[str, Any], key: str, place: str, beside: Iterator[Image]
    ) -> tuple[str, tuple[Image, ...]]:
        """Return text and images of a message, which is a list of parts, or a text with marks for images."""
        value = message.get(key)
        if not isinstance(value, list):
            return self._marked(_text(message, key), place, beside)
        written = _Written()
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                written.say(_text(part, "text"))
            elif kind in IMAGE_PARTS:
                given = next((part[k] for k in ("image", "path", "url", "image_url") if part.get(k) is not None), None)
                if isinstance(given, dict) and "url" in given:
                    given = given["url"]
                written.show(next(beside, None) if given is None else _image(given, self._folder), place)
            else:
                raise BadRowError("wrong_type", f"{place} has a part of type {kind!r}; valid: text, image")
        return written.result()

    def _marked(self, text: str, place: str, beside: Iterator[Image]) -> tuple[str, tuple[Image, ...]]:
        """Return a text without its marks, and the images of the row that belong there."""
        if IMAGE_MARK not in text or not self._layout.fields.get("images"):
            return text, ()
        written = _Written()
        first, *others = text.split(IMAGE_MARK)
        written.say(first)
        for piece in others:
            written.show(next(beside, None), place)
            written.say(piece)
        return written.result()


class _Written:
    """The text of a message with images, as it grows. Texts beside an image are stripped, as Gemma's template does."""

    def __init__(self) -> None:
        self._text = ""
        self._images: list[Image] = []
        self._follows_text = False

    def say(self, text: str) -> None:
        """Add a text."""
        self._text += ("\n" if self._follows_text else "") + text.strip()
        self._follows_text = True

    def show(self, image: Image | None, place: str) -> None:
        """Add an image, if there is one."""
        if image is None:
            raise BadRowError("missing_image", f"{place} shows an image that the row does not hold")
        self._images.append(replace(image, at=len(self._text)))
        self._follows_text = False

    def result(self) -> tuple[str, tuple[Image, ...]]:
        """Return text and images."""
        return self._text, tuple(self._images)


def _code(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    return _text(fields, name) if value else None


def _value(fields: Mapping[str, Any], name: str) -> Any:
    if fields.get(name) is None:
        raise BadRowError("missing_field", f"field {name!r} is missing; it has {sorted(fields)}")
    return fields[name]


def _text(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields:
        raise BadRowError("missing_field", f"field {name!r} is missing; it has {sorted(fields)}")
    return _checked(fields[name], f"field {name!r}")


def _checked(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRowError("wrong_type", f"{name} is no text but {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRowError("bad_utf8", f"{name} holds half of a surrogate pair, which is no text") from None
    return value


def _image(value: Any, folder: Path) -> Image:
    """Return an image given as path, data URL, content, or Hugging Face's {bytes, path}."""
    if isinstance(value, dict):
        content = value.get("bytes")
        value = value.get("path") if content is None else content
        if value is None:
            raise BadRowError("missing_image", "its image has neither bytes nor a path")
    if isinstance(value, bytes):
        return Image(content=value)
    path = _checked(value, "its image")
    if path.startswith("data:"):
        header, comma, encoded = path.partition(",")
        if not comma or not header.endswith(";base64"):
            raise BadRowError("corrupt_image", f"its image is no data URL in base64: {header:.60}")
        try:
            return Image(content=base64.b64decode(encoded, validate=True))
        except binascii.Error as error:
            raise BadRowError("corrupt_image", f"its image is no base64: {error}") from None
    if path.startswith(("http://", "https://")):
        raise BadRowError("missing_image", f"its image {path:.80} is on the internet; images are files")
    if "\0" in path or not path:
        raise BadRowError("missing_image", f"its image {path!r:.80} is no path")
    file = (folder / path).absolute()
    try:
        is_there = file.is_file()
    except OSError:  # a name longer than a file system takes
        is_there = False
    if not is_there:
        raise BadRowError("missing_image", f"its image {file!s:.200} is not there")
    return Image(path=str(file))
