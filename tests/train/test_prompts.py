"""Rows become Gemma's turns, and only answers are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcgemma.recipes.types import DataSpec
from hpcgemma.train.data.prompts import GemmaTurns
from hpcgemma.train.data.tokenizer import load_tokenizer, train_tokenizer
from tests.train.contents import conversation_of

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
