"""The file of strikes: what counts, what is passed over, and what several writers leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hpcgemma import strikes
from hpcgemma.strikes import add_strike, forget, new_strike, read_strikes, strikes_file


def strike(node: str, run: str, attempt: int, why: str = "a GPU is lost") -> None:
    add_strike("leonardo", new_strike(node, run, attempt, why))


def test_two_incidents_leave_a_node_out_and_two_words_on_one_incident_do_not() -> None:
    assert read_strikes("leonardo") == strikes.StrikeList()
    strike("lrdn0001", "r-1", 1)
    strike("lrdn0001", "r-1", 1, "and rank 3 says so too")
    strike("lrdn0002", "r-1", 2)
    assert read_strikes("leonardo").left_out == []
    strike("lrdn0001", "r-1", 4)
    known = read_strikes("leonardo")
    assert (known.nodes, known.left_out, known.problem) == (["lrdn0001", "lrdn0002"], ["lrdn0001"], "")
    assert [(each.run, each.attempt, each.why) for each in known.of("lrdn0001")] == [
        ("r-1", 1, "a GPU is lost"),
        ("r-1", 4, "a GPU is lost"),
    ]
    assert read_strikes("another").nodes == []


def test_a_line_that_is_deleted_is_a_strike_taken_back() -> None:
    strike("lrdn0001", "r-1", 1)
    strike("lrdn0001", "r-2", 1)
    file = strikes_file("leonardo")
    head, last = file.read_text().rstrip("\n").rsplit("\n", 1)
    assert last.endswith("lrdn0001      r-2/1  a GPU is lost")
    file.write_text(head)  # without a newline at its end, as some editors leave it
    assert read_strikes("leonardo").left_out == []
    strike("lrdn0001", "r-3", 1)
    assert read_strikes("leonardo").left_out == ["lrdn0001"]
    assert forget("leonardo", "lrdn0001") == 2
    assert read_strikes("leonardo").nodes == []
    assert file.read_text().startswith("# Nodes of leonardo that failed your runs.")


def test_a_damaged_file_is_a_warning_and_what_can_be_read_of_it_counts() -> None:
    strike("lrdn0001", "r-1", 1)
    file = strikes_file("leonardo")
    file.write_bytes(file.read_bytes() + b"\xff\xfe\0\n2026-11-25 lrdn; rm -rf /\n")
    strike("lrdn0001", "r-2", 1)
    known = read_strikes("leonardo")
    assert known.left_out == ["lrdn0001"]
    assert known.problem == f"{file}, line 5, 6, is no strike and is passed over"
    assert b"\xff\xfe\0" in file.read_bytes()
    file.unlink()
    file.mkdir()
    known = read_strikes("leonardo")
    assert (known.strikes, known.problem) == (
        (),
        f"{file} cannot be read (Is a directory), so no node is left out for its strikes",
    )


def test_what_is_no_name_of_a_node_is_never_written() -> None:
    with pytest.raises(ValueError, match="is not the name of a node"):
        strike("a,b", "r-1", 1)
    strike("lrdn0001", "r-1", 1, "one\nline " + "x" * 500)
    [only] = read_strikes("leonardo").strikes
    assert only.why == ("one line " + "x" * 500)[:200]


def test_several_writers_at_once_lose_no_strike() -> None:
    code = (
        "import sys; from hpcgemma.strikes import add_strike, new_strike\n"
        "for attempt in range(20): add_strike('leonardo', new_strike('n1', sys.argv[1], attempt, 'x'))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, f"run-{number}"]) for number in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    assert len(read_strikes("leonardo").of("n1")) == 80


def test_a_writer_that_died_holds_nobody_up_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strikes, "_WRITER_WAIT_S", 0.1)
    strike("n1", "r-1", 1)
    lock = Path(strikes_file("leonardo")).with_name(".leonardo.txt.lock")
    lock.touch()
    strike("n1", "r-1", 2)
    assert len(read_strikes("leonardo").strikes) == 2
    assert not lock.exists()
