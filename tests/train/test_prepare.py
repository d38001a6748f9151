"""Data is tokenized once, checked, and made again only when it must be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from hpcgemma.errors import InputError
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.summary import describe
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
    }
    assert summary["left_out"] == {}
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
    (run.folder.prepared_dir / "ids.bin").unlink()
    assert prepare(run.folder)["fingerprint"] == first["fingerprint"]
    assert len(PreparedData.open(run.folder.prepared_dir).train) == 41


def test_a_share_of_the_training_rows_is_held_out_by_their_content(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", 400)
    run = Run(tmp_path / "run", NO_GENERATOR | {"data.train": train, "data.eval_share": 0.1})
    summary = prepare(run.folder)
    assert summary["train"]["rows"] + summary["eval"]["rows"] == 400
    assert 20 <= summary["eval"]["rows"] <= 60
    before = {answer[0] for answer in PreparedData.open(run.folder.prepared_dir).questions()}
    lines = Path(train).read_text().splitlines(keepends=True)
    more = tmp_path / "more.jsonl"
    more.write_text("".join(reversed(lines)) + '{"prompt": "one more", "completion": "yes"}\n')
    other = Run(tmp_path / "other", NO_GENERATOR | {"data.train": str(more), "data.eval_share": 0.1})
    prepare(other.folder)
    after = {answer[0] for answer in PreparedData.open(other.folder.prepared_dir).questions()}
    assert after - {"one more"} == before


@pytest.mark.parametrize("share", [1e-9, 0.999999999])
def test_of_a_few_rows_one_is_held_out_and_one_is_trained_on_whatever_the_share(tmp_path: Path, share: float) -> None:
    train = write_rows(tmp_path / "train.jsonl", 5)
    run = Run(tmp_path / "run", NO_GENERATOR | {"data.train": train, "data.eval_share": share})
    summary = prepare(run.folder)
    assert {summary["train"]["rows"], summary["eval"]["rows"]} == {1, 4}
    assert len(PreparedData.open(run.folder.prepared_dir).questions()) == summary["eval"]["rows"]


def test_rows_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    train, long = tmp_path / "train.jsonl", tmp_path / "long.jsonl"
    write_rows(train, 10)
    write_rows(long, 3, words=300)
    train.write_text(train.read_text() + long.read_text())
    held_out = write_rows(tmp_path / "eval.jsonl", 2, words=4)
    changes = NO_GENERATOR | {"data.train": str(train), "data.eval": held_out, "data.max_length": 64}
    with pytest.raises(
        DataError, match=r"3 of 15 rows cannot be trained on, more than data\.max_bad_share = 0\.05: 3 too"
    ):
        prepare(Run(tmp_path / "refused", changes).folder)
    assert len((tmp_path / "refused" / "bad_rows.jsonl").read_text().splitlines()) == 3
    summary = prepare(Run(tmp_path / "run", changes | {"data.max_bad_share": 0.2}).folder)
    assert (summary["train"]["rows"], summary["left_out"]) == (10, {"too_long": 3})


def test_long_rows_are_cut_where_the_recipe_says_so(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", 3, words=300)
    held_out = write_rows(tmp_path / "eval.jsonl", 2, words=4)
    changes = NO_GENERATOR | {"data.train": train, "data.eval": held_out, "data.max_length": 64}
    summary = prepare(Run(tmp_path / "run", changes | {"data.too_long": "truncate"}).folder)
    assert (summary["train"]["longest_row_tokens"], summary["counts"]["truncated_rows"]) == (64, 3)


def test_a_long_conversation_is_split_between_its_exchanges(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    exchange = [{"role": "user", "content": "how many"}, {"role": "assistant", "content": "five " * 10}]
    train.write_text(json.dumps({"messages": exchange * 4}) + "\n" + json.dumps({"messages": exchange}) + "\n")
    changes = {"data.generator": None, "data.format": "messages", "data.train": str(train), "data.eval": str(train)}
    whole = prepare(Run(tmp_path / "whole", changes).folder)
    half = whole["train"]["longest_row_tokens"] // 2 + 4
    summary = prepare(Run(tmp_path / "split", changes | {"data.max_length": half, "data.too_long": "split"}).folder)
    assert summary["train"]["target_tokens"] < whole["train"]["target_tokens"]  # both halves are the same row
    assert summary["counts"]["further_pieces"] == 2
    assert summary["left_out"] == {"duplicate": 2}


def test_documents_are_cut_into_pieces_and_no_token_is_lost(tmp_path: Path) -> None:
    words = " ".join(f"word{number}" for number in range(500))
    (tmp_path / "train.txt").write_text(f"{words}\n")
    (tmp_path / "eval.txt").write_text("something else\n")
    changes = {
        "data.generator": None,
        "data.format": "text",
        "data.train": str(tmp_path / "train.txt"),
        "data.eval": str(tmp_path / "eval.txt"),
        "data.max_length": 50,
    }
    run = Run(tmp_path / "run", changes)
    prepare(run.folder)
    data = PreparedData.open(run.folder.prepared_dir)
    rows = [data.train.ids(row).tolist() for row in range(len(data.train))]
    assert all(row[0] == data.special["bos"] for row in rows)
    assert {len(row) for row in rows[:-1]} == {50}
    joined = [number for row in rows for number in row[1:]]
    assert joined.pop() == data.special["eos"]
    assert Tokenizer.from_file(str(data.tokenizer_dir / "tokenizer.json")).decode(joined) == words


def test_copies_are_left_out_and_leaks_into_the_held_out_rows_are_counted(tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    rows = [{"prompt": f"q{number}", "completion": "a"} for number in range(6)]
    train.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[2], rows[2]]))
    leaks = [rows[0], rows[1] | {"completion": "another"}, {"prompt": "new", "completion": "a"}]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in leaks))
    run = Run(tmp_path / "run", NO_GENERATOR | {"data.train": str(train), "data.eval": str(held_out)})
    summary = prepare(run.folder)
    assert (summary["train"]["rows"], summary["left_out"]) == (6, {"duplicate": 2})
    assert [summary["counts"][f"eval_{what}_in_training"] for what in ("rows", "questions")] == [1, 2]
    report = [json.loads(line) for line in (run.folder.prepared_dir / "bad_rows.jsonl").read_text().splitlines()]
    assert [(each["line"], each["detail"]) for each in report] == [
        (7, f"as {train}, line 3"),
        (8, f"as {train}, line 3"),
    ]
    assert any("WARNING: 1 held-out rows are in the training rows too" in line for line in describe(summary))


def test_bad_rows_are_left_out_counted_and_listed_with_file_and_line(tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    write_rows(train, 40)
    good = train.read_bytes()
    train.write_bytes(
        good + b'{"prompt": "a", "compl\n{"prompt": "a"}\n' + b'{"prompt": "\xff", "completion": "x"}\n[1]\n'
    )
    held_out = write_rows(tmp_path / "eval.jsonl", 2, words=4)
    run = Run(
        tmp_path / "run", NO_GENERATOR | {"data.train": str(train), "data.eval": held_out, "data.max_bad_share": 0.1}
    )
    summary = prepare(run.folder)
    assert summary["train"]["rows"] == 40
    assert summary["left_out"] == {"broken_json": 1, "missing_field": 1, "bad_utf8": 1, "wrong_type": 1}
    report = [json.loads(line) for line in (run.folder.prepared_dir / "bad_rows.jsonl").read_text().splitlines()]
    assert sorted((each["file"], each["line"]) for each in report) == [(str(train), line) for line in (41, 42, 43, 44)]


def test_too_many_bad_rows_end_the_preparation_with_code_2_and_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPCGEMMA_ATTEMPT", "3")
    train = tmp_path / "train.jsonl"
    train.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    run = Run(tmp_path / "run", NO_GENERATOR | {"data.train": str(train)})
    assert main([str(run.folder.path)]) == 2
    outcome = json.loads(run.folder.outcome_file(3).read_text())
    assert (outcome["outcome"], outcome["kind"]) == ("failed", "data")
    assert outcome["sentence"].startswith(
        "1 of 2 rows cannot be trained on, more than data.max_bad_share = 0.05: 1 missing"
    )
    assert f"{train}, line 2: " in outcome["sentence"]
    assert outcome["hint"] == "mend the rows, or --set data.max_bad_share=0.51"
    assert capsys.readouterr().err == f"Error: {outcome['sentence']}\nTry:   {outcome['hint']}\n"
    assert not run.folder.prepared_dir.exists()


def test_runs_with_the_same_data_share_what_was_prepared_wherever_the_files_are(tmp_path: Path) -> None:
    first = Run(tmp_path / "first", NO_GENERATOR | {"data.train": write_rows(tmp_path / "a.jsonl", 20)})
    second = Run(tmp_path / "second", NO_GENERATOR | {"data.train": write_rows(tmp_path / "b.jsonl", 20)})
    other = Run(tmp_path / "other", NO_GENERATOR | {"data.train": write_rows(tmp_path / "c.jsonl", 21)})
    inodes = []
    for run in (first, second, other):
        prepare(run.folder)
        inodes.append((run.folder.prepared_dir / "ids.bin").stat().st_ino)
    assert inodes[0] == inodes[1] != inodes[2]
    assert (
        PreparedData.open(first.folder.prepared_dir).fingerprint
        != PreparedData.open(other.folder.prepared_dir).fingerprint
    )


def test_two_files_of_other_formats_are_one_mixture(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", 10)
    (tmp_path / "b.csv").write_text("instruction,input,output\n" + "".join(f"do {n},,done {n}\n" for n in range(6)))
    parts = [{"path": str(tmp_path / "a.jsonl"), "weight": 2.0}, str(tmp_path / "*.csv")]
    changes = {"data.generator": None, "data.format": "auto", "data.train": parts}
    changes["data.eval"] = write_rows(tmp_path / "eval.jsonl", 2, words=4)
    summary = prepare(Run(tmp_path / "run", changes).folder)
    assert summary["parts"] == [{"first": 0, "count": 10, "weight": 2.0}, {"first": 10, "count": 6, "weight": 1.0}]
    assert [sentence.split(" (")[0] for sentence in summary["detected"]] == [
        "a.jsonl: prompt_completion",
        "b.csv: alpaca",
        "eval.jsonl: prompt_completion",
    ]


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
