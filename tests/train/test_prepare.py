"""Data is tokenized once, checked, and made again only when it must be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpcgemma.errors import InputError
from hpcgemma.train import prepare as preparing
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.failures import DataError
from hpcgemma.train.prepare import main, prepare
from tests.train.launch import Run

NO_GENERATOR: dict[str, Any] = {"data.generator": None, "data.format": "prompt_completion"}


def write_rows(path: Path, count: int, words: int = 3) -> str:
    rows = ({"prompt": f"number {index}", "completion": "yes " * words} for index in range(count))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_summary_counts_rows_and_tokens(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    summary = prepare(run.folder)
    data = PreparedData.open(run.folder.prepared_dir)
    assert summary["train"] == {
        "rows": 41,
        "tokens": sum(len(data.train.ids(row)) for row in range(41)),
        "target_tokens": int(data.train.targets_N.sum()),
        "longest_row_tokens": int(data.train.lengths_N.max()),
        "left_out_rows": 0,
    }
    assert summary["eval"]["rows"] == len(data.eval) == len(data.questions()) == 7
    assert data.questions()[0][0].startswith("Describe this SVG drawing.\n<svg")


def test_a_second_preparation_does_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    prepare(run.folder)
    before = (run.folder.prepared_dir / "summary.json").stat()
    prepare(run.folder)
    after = (run.folder.prepared_dir / "summary.json").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_two_preparations_of_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = Run(tmp_path / "first"), Run(tmp_path / "second")
    prepare(first.folder)
    prepare(second.folder)
    for path in first.folder.prepared_dir.rglob("*"):
        other = second.folder.prepared_dir / path.relative_to(first.folder.prepared_dir)
        if path.is_file() and path.name != "summary.json":  # which says how long it took
            assert path.read_bytes() == other.read_bytes()


def test_changed_data_is_tokenized_again_before_training_and_refused_after(tmp_path: Path) -> None:
    train, held_out = write_rows(tmp_path / "train.jsonl", 20), write_rows(tmp_path / "eval.jsonl", 4)
    run = Run(tmp_path / "run", NO_GENERATOR | {"data.train": train, "data.eval": held_out})
    assert prepare(run.folder)["train"]["rows"] == 20
    write_rows(Path(train), 25)
    assert prepare(run.folder)["train"]["rows"] == 25
    assert run.train_here()["outcome"] == "finished"
    write_rows(Path(train), 30)
    with pytest.raises(InputError, match="the data or its settings changed since this run began"):
        prepare(run.folder)
    Path(train).unlink()
    Path(held_out).unlink()
    assert prepare(run.folder)["train"]["rows"] == 25  # a resume does not need the files


def test_a_prepared_folder_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    first = prepare(run.folder)
    (run.folder.prepared_dir / "train.ids_L.npy").unlink()
    assert prepare(run.folder)["fingerprint"] == first["fingerprint"]
    assert len(PreparedData.open(run.folder.prepared_dir).train) == 41


def test_a_share_of_the_training_rows_is_held_out(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", 40)
    run = Run(tmp_path / "run", NO_GENERATOR | {"data.train": train, "data.eval_share": 0.1})
    summary = prepare(run.folder)
    assert (summary["train"]["rows"], summary["eval"]["rows"]) == (36, 4)
    data = PreparedData.open(run.folder.prepared_dir)
    trained = {tuple(data.train.ids(row).tolist()) for row in range(36)}
    held_out = {tuple(data.eval.ids(row).tolist()) for row in range(4)}
    assert len(trained | held_out) == 40


def test_rows_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    train, long = tmp_path / "train.jsonl", tmp_path / "long.jsonl"
    write_rows(train, 10)
    write_rows(long, 3, words=300)
    train.write_text(train.read_text() + long.read_text())
    changes = NO_GENERATOR | {"data.train": str(train), "data.eval": str(train), "data.max_length": 64}
    summary = prepare(Run(tmp_path / "run", changes).folder)
    assert (summary["train"]["rows"], summary["train"]["left_out_rows"]) == (10, 3)
    assert summary["eval"]["left_out_rows"] == 3


def test_data_of_which_no_row_fits_is_refused(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", 10)
    changes = NO_GENERATOR | {"data.train": train, "data.eval": train, "data.max_length": 5}
    with pytest.raises(DataError, match=r"none of the 10 training rows has at most data\.max_length = 5 tokens"):
        prepare(Run(tmp_path / "run", changes).folder)


def test_rows_are_tokenized_in_chunks_without_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, chunked = Run(tmp_path / "whole"), Run(tmp_path / "chunked")
    prepare(whole.folder)
    monkeypatch.setattr(preparing, "ROWS_AT_ONCE", 7)
    prepare(chunked.folder)
    name = "train.ids_L.npy"
    assert (whole.folder.prepared_dir / name).read_bytes() == (chunked.folder.prepared_dir / name).read_bytes()


def test_a_bad_row_ends_the_preparation_with_code_2_and_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPCGEMMA_ATTEMPT", "3")
    train = tmp_path / "train.jsonl"
    train.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    run = Run(tmp_path / "run", NO_GENERATOR | {"data.train": str(train), "data.eval": str(train)})
    assert main([str(run.folder.path)]) == 2
    sentence = f"{train}, line 2: field 'completion' is missing; it has ['prompt']"
    hint = 'correct or remove the line; a valid one: {"prompt": "...", "completion": "..."}'
    assert json.loads(run.folder.outcome_file(3).read_text()) == {
        "outcome": "failed",
        "kind": "data",
        "sentence": sentence,
        "hint": hint,
        "rank": 0,
        "step": 0,
    }
    assert capsys.readouterr().err == f"Error: {sentence}\nTry:   {hint}\n"
    assert not run.folder.prepared_dir.exists()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data.generator": None}, "the recipe has no rows"),
        ({"tokenizer.train_vocab_size": None}, "the recipe has no tokenizer"),
        (
            {"tokenizer.train_vocab_size": None, "tokenizer.path": "nobody/nothing"},
            "no tokenizer at 'nobody/nothing', neither as a folder nor in the hub cache",
        ),
    ],
)
def test_a_recipe_without_rows_or_tokenizer_is_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        prepare(Run(tmp_path / "run", changes).folder)


def test_preparing_does_not_import_torch(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    code = (
        "import sys; from hpcgemma.train.prepare import main; "
        f"assert main([{str(run.folder.path)!r}]) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
