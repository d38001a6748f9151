"""The ranks' first contact: who does not answer, or computes something else, is named."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hpcgemma.runs.folder import RunFolder
from hpcgemma.train import first_contact
from hpcgemma.train.environment import read_environment
from hpcgemma.train.failures import PeersLostError, SickNodeError, failure_of, write_failure
from hpcgemma.train.first_contact import make_first_contact
from hpcgemma.train.meeting import Meeting
from hpcgemma.train.ranks import Ranks
from tests.claims import rendezvous_port

CPU = torch.device("cpu")
LIMIT_S = 3.0


def be_a_rank(rank: int, port: int, pipe: Connection) -> None:
    """Meet the other, wait for a word, and say what became of the contact."""
    place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "SLURMD_NODENAME": f"node{rank + 1}"}
    os.environ |= place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    ranks = Ranks(read_environment(os.environ), CPU)
    pipe.send("met")
    pipe.recv()
    try:
        pipe.send(make_first_contact(ranks, CPU, LIMIT_S))
    except BaseException as error:  # noqa: BLE001 - the test looks at it
        failure = failure_of(error)
        pipe.send((failure.kind, failure.sentence, failure.rank))
    pipe.recv()
    os._exit(0)


@pytest.fixture
def two() -> Iterator[list[tuple[ForkProcess, Connection]]]:
    """Two ranks, forked from this process, that have met."""
    fork, port = multiprocessing.get_context("fork"), rendezvous_port()
    pair: list[tuple[ForkProcess, Connection]] = []
    for rank in range(2):
        ours, theirs = fork.Pipe()
        process = fork.Process(target=be_a_rank, args=(rank, port, theirs))
        process.start()
        pair.append((process, ours))
    assert [pipe.recv() for _, pipe in pair] == ["met", "met"]
    yield pair
    for process, _ in pair:
        process.kill()
        process.join()


def test_ranks_that_answer_have_made_contact_in_a_moment(two: list[tuple[ForkProcess, Connection]]) -> None:
    for _, pipe in two:
        pipe.send("go")
    assert all(pipe.recv() < LIMIT_S for _, pipe in two)


def test_a_rank_that_does_not_answer_is_named_with_its_node_by_the_other(
    two: list[tuple[ForkProcess, Connection]],
) -> None:
    (_, first), (silent, _) = two
    assert silent.pid is not None
    os.kill(silent.pid, signal.SIGSTOP)
    first.send("go")
    assert first.recv() == ("sick_node", "rank 1 on node2: no answer to the first contact within 3 s", 1)


@pytest.mark.parametrize(
    ("nodes", "right", "error", "sentence"),
    [
        (["n1", "n1", "n2"], [2], SickNodeError, "rank 0 on n1, rank 1 on n1: the sum"),
        (["n1", "n1", "n2"], [], PeersLostError, "rank 0 on n1, rank 1 on n1, rank 2 on n2: the sum"),
    ],
)
def test_who_has_a_wrong_sum_is_to_blame_where_the_others_have_the_right_one(
    monkeypatch: pytest.MonkeyPatch, nodes: list[str], right: list[int], error: type[Exception], sentence: str
) -> None:
    distributed: Any = dist
    store = distributed.TCPStore("127.0.0.1", 0, 3, is_master=True, wait_for_workers=False)
    for rank, node in enumerate(nodes):
        monkeypatch.setenv("SLURMD_NODENAME", node)
        meeting = Meeting(store, rank, 3)
        for word in ("came", *(["right"] if rank in right else [])):
            meeting.tell(word)
    here = Ranks(read_environment({}), CPU)
    here.world_size, here.meeting = 3, Meeting(store, 0, 3)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.fill_(5))
    monkeypatch.setattr(first_contact, "_TELLING_S", 0.0)
    with pytest.raises(error, match=f"^{sentence} over all ranks came to 5 instead of 6$"):
        make_first_contact(here, CPU)


def test_a_rank_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed: Any = dist
    store = distributed.TCPStore("127.0.0.1", 0, 3, is_master=True, wait_for_workers=False)
    came = Meeting(store, 1, 3)
    came.tell("came")
    with pytest.raises(SickNodeError, match=r"^rank 2 did not start within 1 s$") as caught:
        Meeting(store, 0, 3).hold(timedelta(seconds=1))
    assert caught.value.rank == 2


def test_a_rank_that_computes_something_else_says_so_and_the_outcome_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "ones", lambda *size, device: torch.full(size, 2.0, device=device))
    with pytest.raises(SickNodeError, match=r"^rank 0: the first computation came to") as caught:
        make_first_contact(Ranks(read_environment({}), CPU), CPU)
    folder = RunFolder(tmp_path)
    write_failure(folder, 1, failure_of(caught.value), rank=0, step=0)
    assert '"kind": "sick_node"' in folder.outcome_file(1).read_text()
