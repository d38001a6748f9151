from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcgemma import files


def test_a_line_that_was_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    files.append_json_line(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"b": 2')
    files.append_json_line(path, {"c": 3})
    assert list(files.read_json_lines(path)) == [{"a": 1}, {"c": 3}]


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert list(files.read_json_lines(tmp_path / "none")) == []


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    files.write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_folder_is_closed_to_others_and_never_made_twice(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    files.make_private_dir(path)
    assert path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):
        files.make_private_dir(path)
