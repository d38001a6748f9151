"""Rows become the turns that a model's own chat template writes, and only answers are learned."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpcgemma.recipes.types import DataSpec
from hpcgemma.rows.bad_rows import BadRowError
from hpcgemma.rows.conversation import Conversation, Turn
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.prompts import GemmaTurns, TokenizedRow, TurnFormat
from hpcgemma.train.data.templated import MARK, TemplateTurns
from hpcgemma.train.data.tokenizer import copy_tokenizer, train_tokenizer
from hpcgemma.train.data.turn_format import turn_format
from hpcgemma.train.failures import DataError
from hpcgemma.train.prepare import prepare
from tests.train import chat_tokenizers
from tests.train.contents import conversation_of
from tests.train.launch import Run
from tests.train.models import SHAPES
from tests.train.test_prepare import NO_GENERATOR, write_rows

DIALOGUE: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": " Hello! "},
        {"role": "assistant", "content": "Grüße 你好\n"},
        {"role": "user", "content": "1 + 1 = ?"},
        {"role": "assistant", "content": "2"},
    ]
}
WITH_SYSTEM = {"messages": [{"role": "system", "content": "Be brief."}, *DIALOGUE["messages"]]}

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Chat:
    """A tokenizer as a run has it: loaded by transformers, written, and loaded for its turns."""

    def __init__(self, source: Path) -> None:
        self.folder = source.with_name(f"{source.name}-copy")
        copy_tokenizer(str(source), None, self.folder)
        self.turns: TurnFormat = turn_format(self.folder, source.name)
        self.reference: Any = AutoTokenizer.from_pretrained(str(self.folder))

    def row(self, row: dict[str, Any]) -> TokenizedRow:
        (tokenized,) = self.turns.tokenize([conversation_of(row, DataSpec(format="messages"))])
        return tokenized

    def expected(self, row: dict[str, Any]) -> list[int]:
        """Return the ids that transformers gives the same messages, stripped."""
        messages = [each | {"content": each["content"].strip()} for each in row["messages"]]
        ids: list[int] = self.reference.apply_chat_template(messages)["input_ids"]
        return ids

    def shown(self, row: TokenizedRow) -> str:
        """Return a row's text, with what is learned in double brackets."""
        parts: list[tuple[bool, list[int]]] = []
        for number, is_target in zip(row.ids, row.is_target, strict=True):
            if not parts or parts[-1][0] != is_target:
                parts.append((is_target, []))
            parts[-1][1].append(number)
        texts = [(is_target, self.reference.decode(ids)) for is_target, ids in parts]
        return "".join(f"[[{text}]]" if is_target else text for is_target, text in texts)

    def control_tokens(self, row: TokenizedRow) -> list[str]:
        assert isinstance(self.turns, TemplateTurns)
        return [self.reference.convert_ids_to_tokens(each) for each in row.ids if each in self.turns.control_ids]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chat]:
    folder = tmp_path_factory.mktemp("tokenizers")
    makers = (chat_tokenizers.qwen, chat_tokenizers.llama, chat_tokenizers.mistral, chat_tokenizers.phi)
    return {make.__name__: Chat(make(folder / make.__name__)) for make in makers}


@pytest.mark.parametrize("name", ["qwen", "llama", "mistral", "phi"])
def test_a_dialogue_has_the_tokens_that_transformers_gives_it(chats: dict[str, Chat], name: str) -> None:
    assert chats[name].row(DIALOGUE).ids == chats[name].expected(DIALOGUE)


@pytest.mark.parametrize("name", ["qwen", "llama", "phi"])
def test_a_system_message_has_the_tokens_that_transformers_gives_it(chats: dict[str, Chat], name: str) -> None:
    assert chats[name].row(WITH_SYSTEM).ids == chats[name].expected(WITH_SYSTEM)


def test_every_answer_is_learned_with_the_token_that_ends_it(chats: dict[str, Chat]) -> None:
    assert {name: chat.shown(chat.row(DIALOGUE)) for name, chat in chats.items()} == {
        "qwen": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n[[Grüße 你好<|im_end|>]]\n"
        "<|im_start|>user\n1 + 1 = ?<|im_end|>\n<|im_start|>assistant\n[[2<|im_end|>]]\n",
        "llama": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[Grüße 你好<|eot_id|>]]"
        "<|start_header_id|>user<|end_header_id|>\n\n1 + 1 = ?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[2<|eot_id|>]]",
        # What SentencePiece's decoder begins with loses the space before it.
        "mistral": "<s>[INST] Hello![/INST][[Grüße 你好</s>]][INST] 1 + 1 = ?[/INST][[2</s>]]",
        "phi": "<|user|>Hello!<|end|><|assistant|>[[Grüße 你好<|end|>]]"
        "<|user|>1 + 1 = ?<|end|><|assistant|>[[2<|end|>]]<|endoftext|>",
    }


def test_without_a_system_message_the_first_turn_begins_with_that_text(chats: dict[str, Chat]) -> None:
    chat = chats["mistral"]
    assert chat.shown(chat.row(WITH_SYSTEM)).startswith("<s>[INST] Be brief.\n\nHello![/INST]")


@pytest.mark.parametrize("name", ["qwen", "llama", "mistral", "phi"])
def test_a_text_that_says_special_tokens_writes_none(chats: dict[str, Chat], name: str) -> None:
    chat = chats[name]
    assert isinstance(chat.turns, TemplateTurns)
    tokens = " ".join(sorted(chat.turns.layout.framing)) + f"<{MARK}|im_end|>"
    attack = [{"role": each["role"], "content": f"{tokens} {each['content']}"} for each in DIALOGUE["messages"]]
    row = chat.row({"messages": attack})
    assert chat.control_tokens(row) == chat.control_tokens(chat.row(DIALOGUE))
    assert sorted(chat.turns.layout.framing)[0] in chat.reference.decode(
        [each for each in row.ids if each not in chat.turns.control_ids]
    )


@pytest.mark.parametrize("change", [{"special": False}, {"normalized": True}])
def test_tokens_around_answers_are_kept_for_them_however_the_tokenizer_marks_them(
    tmp_path: Path, change: dict[str, bool]
) -> None:
    folder = chat_tokenizers.qwen(tmp_path / "tokenizer")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = [token | change for token in content["added_tokens"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    turns = turn_format(folder, "it")
    honest, attack = turns.tokenize(
        [Conversation((Turn("user", text), Turn("model", text))) for text in ("2", "<|im_end|><|im_start|>")]
    )
    for number in (1, 2):
        assert attack.ids.count(number) == honest.ids.count(number) == 3


def test_special_tokens_are_those_that_the_tokenizer_names(chats: dict[str, Chat]) -> None:
    found = {name: chat.reference.convert_ids_to_tokens for name, chat in chats.items()}
    named = {
        name: [
            None if number is None else found[name](number)
            for special in [chat.turns.special]
            for number in (special.pad, special.eos, special.end_of_turn, special.bos)
        ]
        for name, chat in chats.items()
    }
    assert named == {
        "qwen": ["<|endoftext|>", "<|im_end|>", "<|im_end|>", None],
        "llama": ["<|reserved_special_token_0|>", "<|end_of_text|>", "<|eot_id|>", "<|begin_of_text|>"],
        "mistral": ["</s>", "</s>", "</s>", "<s>"],
        "phi": ["<|endoftext|>", "<|endoftext|>", "<|end|>", "<s>"],
    }


def test_gemmas_tokenizer_keeps_gemmas_turns(tmp_path: Path) -> None:
    train_tokenizer([Conversation((Turn("user", "a"), Turn("model", "b")))], 300, tmp_path / "tokenizer")
    assert isinstance(turn_format(tmp_path / "tokenizer", "it"), GemmaTurns)


def test_a_tag_around_answers_changes_nothing(tmp_path: Path) -> None:
    tagged = CHATML.replace(
        "{{ message.content }}<|im_end|>",
        "{% if message.role == 'assistant' %}{%- generation -%}{{ message.content }}<|im_end|>{%- endgeneration -%}"
        "{% else %}{{ message.content }}<|im_end|>{% endif %}",
    )
    chat = Chat(chat_tokenizers.qwen(tmp_path / "tagged", tagged))
    assert chat.row(DIALOGUE).ids == chat.expected(DIALOGUE)


def test_today_is_the_same_day_whenever_rows_are_prepared(tmp_path: Path) -> None:
    chat = Chat(chat_tokenizers.qwen(tmp_path / "dated", "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML))
    assert chat.shown(chat.row(DIALOGUE)).startswith("Today is 26 Jul 2024.\n<|im_start|>user")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, "the tokenizer of 'it' has neither a chat template nor Gemma's tokens, so rows cannot become turns"),
        ("{% if %}", "the tokenizer's chat template is not valid Jinja: Expected an expression, got 'end of statement"),
        ("{{ raise_exception('no') }}", "chat template refuses the turns user, assistant, user, assistant: no"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages.clear() }}", "access to attribute 'clear' of 'list' object is unsafe"),
        ("<|im_end|>", "chat template does not write all turns in their order"),
        (CHATML.replace("<|im_end|>", ""), "does not end each answer with the same special token"),
        (
            CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif"),
            r"not write a conversation as it began, .*<think>\\n' does not precede the answer 'model says one'",
        ),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused(tmp_path: Path, template: str | None, problem: str) -> None:
    folder = chat_tokenizers.qwen(tmp_path / "tokenizer", template)
    with pytest.raises(DataError, match=problem) as caught:
        turn_format(folder, "it")
    assert caught.value.hint.startswith("--set tokenizer.path=")


@pytest.mark.parametrize("end", ["You", "!"])
def test_a_text_that_the_tokenizer_can_only_write_as_a_special_token_is_refused(tmp_path: Path, end: str) -> None:
    folder = chat_tokenizers.qwen(tmp_path / "tokenizer", CHATML.replace("<|im_end|>", end))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert end in tokenizer.get_vocab()  # its model makes it of letters, too
    tokenizer.add_special_tokens([end])
    tokenizer.save(str(folder / "tokenizer.json"))
    turns = turn_format(folder, "it")
    assert turns.tokenize([Conversation((Turn("user", "2"), Turn("model", "2")))])
    with pytest.raises(BadRowError, match="says a special token, and this tokenizer cannot write it as plain text"):
        turns.tokenize([Conversation((Turn("user", "You!"), Turn("model", "2")))])


def test_turns_are_found_and_written_without_torch_and_transformers(tmp_path: Path) -> None:
    folder = chat_tokenizers.qwen(tmp_path / "tokenizer")
    code = (
        "import sys; from pathlib import Path; from hpcgemma.train.data.turn_format import turn_format; "
        "from hpcgemma.rows.conversation import Conversation, Turn; "
        f"turns = turn_format(Path({str(folder)!r}), 'it'); "
        "assert turns.tokenize([Conversation((Turn('user', 'a'), Turn('model', 'b')))]); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("make", "shape"), [(chat_tokenizers.qwen, "qwen2"), (chat_tokenizers.llama, "llama")])
def test_a_model_of_another_family_is_trained_on_its_own_turns(
    tmp_path: Path, make: Callable[[Path], Path], shape: str
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 12)
    changes = NO_GENERATOR | {
        "data.train": rows,
        "data.eval": rows,
        "model.config": SHAPES[shape],
        "tokenizer.train_vocab_size": None,
        "tokenizer.path": str(make(tmp_path / "tokenizer")),
        "training.max_steps": 2,
        "evaluation.generation": {"rows": 2, "max_new_tokens": 4},
    }
    run = Run(tmp_path / "run", changes)
    assert prepare(run.folder)["train"]["rows"] == 12
    data = PreparedData.open(run.folder.prepared_dir)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(data.tokenizer_dir))
    asked = [{"role": "user", "content": "number 3"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert data.train.prompt(3).tolist() == prompt
    assert run.train_here()["outcome"] == "finished"
    final: Any = AutoTokenizer.from_pretrained(str(run.folder.final_dir))
    assert final.apply_chat_template(asked, add_generation_prompt=True)["input_ids"] == prompt
    model: Any = AutoModelForCausalLM.from_pretrained(str(run.folder.final_dir))
    assert model.generation_config.eos_token_id == data.stop_ids
    assert model.config.bos_token_id == data.special.get("bos")
