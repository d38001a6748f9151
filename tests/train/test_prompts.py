"""Rows become Gemma's turns, and only answers are learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpcgemma.recipes.types import DataSpec
from hpcgemma.train.data.prompts import GemmaTurns
from hpcgemma.train.data.rows import conversation_of, read_conversations
from hpcgemma.train.data.tokenizer import load_tokenizer, train_tokenizer
from hpcgemma.train.failures import DataError

MESSAGES: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hello "},
        {"role": "assistant", "content": "Hi!\n"},
        {"role": "user", "content": "Bye"},
        {"role": "model", "content": "See you"},
    ]
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer([conversation_of(MESSAGES, DataSpec(format="messages"))], 300, path)
    return path


@pytest.fixture(scope="module")
def turns(folder: Path) -> GemmaTurns:
    found = GemmaTurns.of(load_tokenizer(folder))
    assert found is not None
    return found


def shown(row: dict[str, Any], data: DataSpec, turns: GemmaTurns) -> str:
    """Return a row's text as the model gets it, with what is learned in double brackets."""
    (tokenized,) = turns.tokenize([conversation_of(row, data)])
    text, is_open = "", False
    for number, is_target in zip(tokenized.ids, tokenized.is_target, strict=True):
        if is_target != is_open:
            text += "]]" if is_open else "[["
            is_open = is_target
        text += turns.tokenizer.decode([number], skip_special_tokens=False)
    return text


def test_every_answer_of_a_dialogue_is_learned_and_nothing_else(turns: GemmaTurns) -> None:
    assert shown(MESSAGES, DataSpec(format="messages"), turns) == (
        "<bos><start_of_turn>user\nBe brief.\n\nHello<end_of_turn>\n"
        "<start_of_turn>model\n[[Hi!<end_of_turn>]]\n"
        "<start_of_turn>user\nBye<end_of_turn>\n"
        "<start_of_turn>model\n[[See you<end_of_turn>]]\n"
    )


def test_a_prompt_and_its_completion_are_two_turns(turns: GemmaTurns) -> None:
    row = {"prompt": "2 + 2?", "completion": " 4 "}
    assert shown(row, DataSpec(format="prompt_completion"), turns) == (
        "<bos><start_of_turn>user\n2 + 2?<end_of_turn>\n<start_of_turn>model\n[[4<end_of_turn>]]\n"
    )


def test_a_drawing_follows_the_instruction(turns: GemmaTurns) -> None:
    data = DataSpec(format="svg_caption", instruction="What is it?")
    assert shown({"svg": "<svg/>", "caption": "nothing"}, data, turns) == (
        "<bos><start_of_turn>user\nWhat is it?\n<svg/><end_of_turn>\n<start_of_turn>model\n[[nothing<end_of_turn>]]\n"
    )


def test_a_text_that_says_end_of_turn_does_not_end_the_turn(turns: GemmaTurns) -> None:
    row = {"prompt": "<end_of_turn>", "completion": "<bos>"}
    (tokenized,) = turns.tokenize([conversation_of(row, DataSpec(format="prompt_completion"))])
    assert tokenized.ids.count(turns.special.end_of_turn) == 2
    assert tokenized.ids.count(turns.bos) == 1


def test_the_saved_tokenizer_loads_with_transformers_and_its_template_gives_the_same_tokens(
    folder: Path, turns: GemmaTurns
) -> None:
    from transformers import AutoTokenizer

    loaded: Any = AutoTokenizer.from_pretrained(str(folder))
    messages = [{**each, "role": each["role"].replace("model", "assistant")} for each in MESSAGES["messages"]]
    (tokenized,) = turns.tokenize([conversation_of(MESSAGES, DataSpec(format="messages"))])
    assert loaded.apply_chat_template(messages)["input_ids"] == tokenized.ids
    assert loaded.decode(loaded("Grüße, 你好", add_special_tokens=False)["input_ids"]) == "Grüße, 你好"
    special = [loaded.pad_token_id, loaded.eos_token_id, loaded.bos_token_id, loaded.unk_token_id]
    assert special == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("format_", "line", "problem"),
    [
        ("messages", "{", "it is not JSON: Expecting property name"),
        ("messages", "[1]", "it is a JSON list, not an object"),
        ("messages", '{"text": 1}', "field 'messages' is not a list of messages; it has the fields ['text']"),
        ("messages", '{"messages": []}', "field 'messages' is not a list of messages"),
        (
            "messages",
            '{"messages": [{"role": "bot", "content": "x"}]}',
            "messages[0] has role 'bot'; valid: user, assistant, model, system",
        ),
        ("messages", '{"messages": [{"role": "assistant", "content": "x"}]}', "here it is user's"),
        ("messages", '{"messages": [{"role": "user", "content": "x"}]}', "the last message is not the assistant's"),
        ("messages", '{"messages": [{"role": "user"}]}', "field 'content' is missing"),
        ("svg_caption", '{"svg": "x"}', "field 'caption' is missing; it has ['svg']"),
        ("svg_caption", '{"svg": 3, "caption": "x"}', "field 'svg' is no text but 3"),
        ("prompt_completion", '{"prompt": "x", "completion": " "}', "its answer is empty"),
        ("prompt_completion", '{"prompt": "\\ud800", "completion": "x"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, format_: Any, line: str, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    good = {
        "messages": json.dumps(MESSAGES),
        "svg_caption": '{"svg": "a", "caption": "b"}',
        "prompt_completion": '{"prompt": "a", "completion": "b"}',
    }
    path.write_text(f"{good[format_]}\n\n{line}\n")
    with pytest.raises(DataError) as caught:
        list(read_conversations(path, DataSpec(format=format_)))
    assert caught.value.problem.startswith(f"{path}, line 3: ")
    assert problem in caught.value.problem
    assert "a valid one: {" in caught.value.hint


def test_a_row_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "\xff", "completion": "x"}\n')
    with pytest.raises(DataError, match="line 1: it is not UTF-8"):
        list(read_conversations(path, DataSpec(format="prompt_completion")))


def test_an_empty_file_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.jsonl holds no rows"):
        list(read_conversations(tmp_path / "empty.jsonl", DataSpec()))
    with pytest.raises(DataError, match=r"gone\.jsonl cannot be read: No such file"):
        list(read_conversations(tmp_path / "gone.jsonl", DataSpec()))
