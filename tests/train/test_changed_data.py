"""Data that changed since a checkpoint was made: refused, until somebody accepts that the result changes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpcgemma.errors import InputError
from hpcgemma.train.prepare import prepare
from tests.train.launch import Run


def write_rows(path: Path, count: int) -> str:
    path.write_text("".join(f'{{"prompt": "What is {n}?", "completion": "It is {n}."}}\n' for n in range(count)))
    return str(path)


def allow(run: Run, **steps: int) -> None:
    """Accept changes up to checkpoints, as `hpcgemma resume --allow-change` does."""
    content = yaml.safe_load(run.folder.run_file.read_text())
    content["allowed_changes"] |= steps
    run.folder.run_file.write_text(yaml.safe_dump(content))


@pytest.fixture
def changes(tmp_path: Path) -> dict[str, Any]:
    """A recipe of twenty rows of a file, with a tokenizer of its own."""
    first = Run(tmp_path / "first")
    prepare(first.folder)
    return {
        "tokenizer": {"path": str(first.folder.prepared_dir / "tokenizer")},
        "data": {
            "train": write_rows(tmp_path / "train.jsonl", 20),
            "eval": write_rows(tmp_path / "eval.jsonl", 4),
            "format": "prompt_completion",
        },
        "training.max_steps": 3,
        "evaluation.every_steps": None,
    }


def test_changed_rows_are_refused_until_they_are_allowed(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = Run(tmp_path / "run", changes)
    assert run.train_here()["outcome"] == "finished"
    shutil.rmtree(run.folder.final_dir)
    write_rows(Path(changes["data"]["train"]), 30)
    expected = r"changed since this run began \(.*train.jsonl.*eval.jsonl: [0-9a-f]{12} -> [0-9a-f]{12}\)"
    with pytest.raises(InputError, match=expected) as refusal:
        prepare(run.folder)
    assert refusal.value.hint == (
        "restore them, or accept that the result changes: hpcgemma resume run --allow-change data"
    )
    allow(run, data=2)  # given for an earlier checkpoint
    with pytest.raises(InputError, match=expected):
        prepare(run.folder)
    allow(run, data=3)
    assert prepare(run.folder)["train"]["rows"] == 30
    allow(run, data=-1)
    refused = run.train_here()
    assert re.fullmatch(
        r"what decides the result has changed since step 3 was saved: data: [0-9a-f]{12} -> [0-9a-f]{12}",
        refused["sentence"],
    )
    allow(run, data=3)
    assert run.train_here()["outcome"] == "finished"


def test_changed_settings_of_the_data_are_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = Run(tmp_path / "run", changes)
    assert run.train_here()["outcome"] == "finished"
    run.change(changes | {"data": changes["data"] | {"max_length": 100}})
    with pytest.raises(InputError, match=r"changed since this run began \(data.max_length: 1024 -> 100\)"):
        prepare(run.folder)


def test_where_the_rows_made_the_tokenizer_they_cannot_change_at_all(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = Run(tmp_path / "run", changes | {"tokenizer": {"train_vocab_size": 400}})
    assert run.train_here()["outcome"] == "finished"
    write_rows(Path(changes["data"]["train"]), 30)
    allow(run, data=3)
    with pytest.raises(InputError, match="the data changed since this run began, and its tokenizer was trained from"):
        prepare(run.folder)
