from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from hpcgemma.recipes.types import DataSpec
from hpcgemma.rows.bad_rows import BadRowError
from hpcgemma.rows.conversation import Content, Conversation, Document, Image, Turn
from hpcgemma.rows.conversion import Converter
from hpcgemma.rows.formats import VALID_ROWS, detect
from hpcgemma.rows.records import Record


def converter(row: dict[str, Any], folder: Path, **spec: Any) -> Converter:
    data = DataSpec(**spec)
    made = Converter(detect([Record(1, row)], data, "rows.jsonl"), data, folder)
    sent: Converter = pickle.loads(pickle.dumps(made))
    return sent


def converted(row: dict[str, Any], folder: Path = Path(), **spec: Any) -> Content:
    return converter(row, folder, **spec)(row)


def exchange(question: str, answer: str, *images: Image) -> Conversation:
    return Conversation((Turn("user", question, images), Turn("model", answer)))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a", "input": "b", "output": "c"}, exchange("a\n\nb", "c")),
        ({"instruction": "a", "input": "", "output": "c"}, exchange("a", "c")),
        ({"instruction": "a", "context": "b", "response": "c"}, exchange("a\n\nb", "c")),
        ({"instruction": "a", "context": None, "response": "c"}, exchange("a", "c")),
        ({"prompt": "a", "completion": "b"}, exchange("a", "b")),
        ({"svg": "<svg/>", "caption": "sun"}, exchange("Describe this SVG drawing.\n<svg/>", "sun")),
        ({"text": "a"}, Document("a")),
        ({"source_text": "a", "target_text": "b"}, exchange("Translate the following text:\n\na", "b")),
        (
            {"translation": {"en": "a", "hau": "b"}},
            exchange("Translate the following text from English to Hausa:\n\na", "b"),
        ),
        (
            {"source_text": "a", "target_text": "b", "src_lang_code": "de_DE", "tgt_lang_code": "cs_CZ"},
            exchange("Translate the following text from German to Czech:\n\na", "b"),
        ),
        (
            {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"},
                               {"from": "gpt", "value": "b"}]},
            Conversation((Turn("user", "a"), Turn("model", "b")), "s"),
        ),
    ],
)  # fmt: skip
def test_a_row_of_each_format_becomes_what_it_means(row: dict[str, Any], expected: Content) -> None:
    assert converted(row) == expected


def test_fixed_languages_choose_the_direction_of_a_translation() -> None:
    row = {"translation": {"en": "a", "hau": "b"}}
    turned = converted(row, languages={"source": "hau", "target": "en"})
    assert turned == exchange("Translate the following text from Hausa to English:\n\nb", "a")


def test_a_template_gives_the_user_turn_and_the_format_the_answer() -> None:
    row = {"instruction": "a", "output": "b", "topic": "c"}
    assert converted(row, prompt_template='{topic}: {instruction} {"json": 1}') == exchange('c: a {"json": 1}', "b")


def test_images_are_files_beside_the_rows_or_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    url = "data:image/png;base64," + base64.b64encode(b"png").decode()
    here, content = Image(path=str(tmp_path / "a.png")), Image(content=b"png")
    for given, image in [("a.png", here), ({"bytes": b"png", "path": None}, content), (url, content)]:
        row = {"image": given, "captions": ["one", "two"]}
        assert converted(row, tmp_path) == exchange("Describe this image.", "one", image)


def test_images_of_messages_stand_in_their_turns(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"png")
    parts = [{"type": "image"}, {"type": "text", "text": "what?"}]
    answer = {"role": "assistant", "content": "b"}
    row = {"messages": [{"role": "user", "content": parts}, answer], "images": ["a.png"]}
    assert converted(row, tmp_path) == exchange("what?", "b", Image(path=str(tmp_path / "a.png")))
    with pytest.raises(BadRowError, match="shows an image that the row does not hold"):
        converted({**row, "images": None}, tmp_path)


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("valid", "row", "reason", "detail"),
    [
        ("messages", {"messages": [USER, USER]}, "bad_turns", "and here it is assistant's"),
        ("messages", {"messages": [USER]}, "bad_turns", "the last message is not the assistant's"),
        ("messages", {"messages": [ASSISTANT]}, "bad_turns", "and here it is user's"),
        ("messages", {"messages": []}, "bad_turns", "is not a list of messages"),
        ("messages", {"messages": "a"}, "wrong_type", "is not a list of messages"),
        ("messages", {"text": "a"}, "missing_field", "it has the fields ['text']"),
        ("messages", {"messages": ["a"]}, "wrong_type", "messages[0] is no object"),
        (
            "messages",
            {"messages": [USER, {"role": "system", "content": "s"}, ASSISTANT]},
            "bad_turns",
            "only the first",
        ),
        ("messages", {"messages": [USER, {"role": "tool", "content": "s"}]}, "bad_turns", "has role 'tool'; valid"),
        ("messages", {"messages": [USER, {"role": "model", "content": " "}]}, "empty_answer", "is an empty answer"),
        ("messages", {"messages": [{"role": "user", "content": 1}]}, "wrong_type", "field 'content' is no text but 1"),
        ("alpaca", {"instruction": "a"}, "missing_field", "field 'output' is missing; it has ['instruction']"),
        ("alpaca", {"instruction": "a", "output": " "}, "empty_answer", "its answer is empty"),
        ("alpaca", {"instruction": "a", "output": "\ud800"}, "bad_utf8", "half of a surrogate pair"),
        ("text", {"text": "\n"}, "empty_answer", "its text is empty"),
        ("image_caption", {"image": "gone.png", "caption": "a"}, "missing_image", "is not there"),
        ("image_caption", {"image": "a\0.png", "caption": "a"}, "missing_image", "is no path"),
        ("image_caption", {"image": "a" * 5000, "caption": "a"}, "missing_image", "is not there"),
        ("image_caption", {"image": "data:image/png;base64,?", "caption": "a"}, "corrupt_image", "is no base64"),
    ],
)
def test_a_bad_row_says_why(valid: Any, row: dict[str, Any], reason: str, detail: str, tmp_path: Path) -> None:
    with pytest.raises(BadRowError) as raised:
        converter(json.loads(VALID_ROWS[valid]), tmp_path)(row)
    assert raised.value.reason == reason
    assert detail in raised.value.detail


def test_a_translation_without_the_recipe_s_language_is_a_bad_row() -> None:
    with pytest.raises(BadRowError, match="field 'fr' is missing"):
        converted({"translation": {"en": "a", "hau": "b"}}, languages={"source": "fr", "target": "en"})
