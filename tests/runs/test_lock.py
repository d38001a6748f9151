from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.lock import Claim, Holder, LockHeldError, LockLostError, RunLock, newest_claim


def holder(job_id: str) -> Holder:
    return Holder(job_id=job_id, on_slurm=True, restarts=0, host="node1", pid=7, start_ticks=1, boot="b")


def lives(claim: Claim) -> bool:
    return False


def is_gone(claim: Claim) -> bool:
    return True


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def test_the_second_job_is_refused_with_the_first_ones_name_and_attempt(folder: RunFolder) -> None:
    RunLock.take(folder, holder("1"), lives).beat(attempt=3)
    with pytest.raises(LockHeldError) as refusal:
        RunLock.take(folder, holder("2"), lives)
    assert refusal.value.problem == (
        "another job works on this run: job 1 on node1 (process 7, attempt 3); job 2 leaves it alone"
    )
    assert refusal.value.hint == "hpcgemma status run  shows it; hpcgemma cancel run  ends it"
    assert refusal.value.exit_code == 2


def test_a_lock_that_was_let_go_is_taken_and_nobody_is_asked(folder: RunFolder) -> None:
    RunLock.take(folder, holder("1"), lives).release()
    RunLock.take(folder, holder("2"), lives)
    newest = newest_claim(folder)
    assert newest is not None
    assert (newest.number, newest.holder) == (2, holder("2"))


def test_one_whose_job_was_taken_for_ended_finds_the_lock_lost(folder: RunFolder) -> None:
    lost = RunLock.take(folder, holder("1"), lives)
    RunLock.take(folder, holder("2"), is_gone)
    with pytest.raises(LockLostError) as loss:
        lost.beat(attempt=1)
    assert loss.value.problem == (
        "job 2 on node1 (process 7, attempt 0) has taken this run over; job 1 leaves it alone"
    )
    lost.release()  # which says nothing of the lock that is held now
    with pytest.raises(LockHeldError):
        RunLock.take(folder, holder("3"), lives)


def test_one_that_was_overtaken_while_it_judged_judges_again(folder: RunFolder) -> None:
    RunLock.take(folder, holder("1"), lives)
    judged = []

    def overtaken(claim: Claim) -> bool:
        judged.append(claim.number)
        if len(judged) == 1:
            RunLock.take(folder, holder("2"), is_gone)
            return True
        return False

    with pytest.raises(LockHeldError, match="another job works on this run: job 2"):
        RunLock.take(folder, holder("3"), overtaken)
    assert judged == [1, 2]


def test_a_sign_of_life_is_given_at_intervals_and_at_each_new_attempt(folder: RunFolder) -> None:
    lock = RunLock.take(folder, holder("1"), lives)
    for attempt in (1, 1, 2):
        lock.beat(attempt)
    newest = newest_claim(folder)
    assert newest is not None
    assert newest.holder == replace(holder("1"), attempt=2, beats=2)


def test_a_claim_that_cannot_be_read_is_left_to_be_judged(folder: RunFolder) -> None:
    folder.lock_dir.mkdir()
    (folder.lock_dir / "1").write_text("{")
    with pytest.raises(LockHeldError, match="another job works on this run: a job that cannot be told"):
        RunLock.take(folder, holder("2"), lives)
    RunLock.take(folder, holder("3"), is_gone)


def test_where_there_are_no_links_the_lock_is_taken_all_the_same(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    RunLock.take(folder, holder("1"), lives)
    with pytest.raises(LockHeldError):
        RunLock.take(folder, holder("2"), lives)
    assert sorted(path.name for path in folder.lock_dir.iterdir()) == ["1"]


def test_an_answer_that_was_lost_on_the_way_from_the_server_is_no_refusal(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    RunLock.take(folder, holder("1"), lives)
    assert json.loads((folder.lock_dir / "1").read_text())["job_id"] == "1"


def test_of_a_hundred_processes_at_once_exactly_one_takes_the_lock_of_one_that_is_gone(tmp_path: Path) -> None:
    race = [sys.executable, "-m", "tests.faults.race_takers", "--trials", "2", "--folder", str(tmp_path)]
    done = subprocess.run(race, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("2 of 2 races of 100 takers of one lock: 0 failed"), f"{done.stdout}{done.stderr}"
