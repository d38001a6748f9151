"""The watch with real files: heartbeats and logs as ranks write them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from hpcgemma.runs.folder import RunFolder
from hpcgemma.supervise.hang import Hang
from hpcgemma.supervise.launchers import RankExit
from hpcgemma.supervise.rank_watch import RankWatch
from tests.supervise.test_stacks import AGREEING
from tests.test_plan import plan_of

SILENT_S = 0.2


class StoppedSecondRank:
    """Ranks of which only the first can still write its stacks."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def poll(self) -> list[RankExit] | None:
        return None

    def warn(self) -> None:
        pass

    def dump_stacks(self) -> None:
        with self._folder.rank_log(1, 0).open("a") as log:
            log.write(AGREEING)

    def kill(self) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder whose ranks have begun to load."""
    folder = RunFolder(tmp_path)
    folder.heartbeat_dir.mkdir()
    folder.attempt_dir(1).mkdir(parents=True)
    for rank in (0, 1):
        folder.rank_log(1, rank).write_text("a line from before\n")
        facts = {"phase": "loading", "step": 0, "time": 1.0}
        folder.heartbeat_file(rank).write_text(json.dumps(facts))
    return folder


def watch_of(folder: RunFolder) -> RankWatch:
    settings = (f"watch.training_s={SILENT_S}", f"watch.elsewhere_s={SILENT_S}")
    return RankWatch(plan_of(settings=settings), folder, 1)


def hang_of(watch: RankWatch, for_s: float) -> Hang | None:
    """Look until the ranks hang, at most so long."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        if (hang := watch.look()) is not None:
            return hang
        time.sleep(0.02)
    return None


def test_of_silent_ranks_the_one_that_writes_no_stack_is_named(folder: RunFolder) -> None:
    watch = watch_of(folder)
    hang = hang_of(watch, for_s=30)
    assert hang is not None
    assert hang.behind is None
    named = watch.ask_for_stacks(StoppedSecondRank(folder), hang)
    assert (named.behind, named.silent_s) == (1, hang.silent_s)


def test_where_no_heartbeat_can_be_written_nobody_hangs(folder: RunFolder) -> None:
    watch = watch_of(folder)
    for path in folder.heartbeat_dir.iterdir():
        path.unlink()
    folder.heartbeat_dir.rmdir()
    assert hang_of(watch, for_s=5 * SILENT_S) is None
    folder.heartbeat_dir.mkdir()
    assert hang_of(watch, for_s=30) is not None
