"""What the supervisor finds out about its place."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hpcgemma.supervise import allocation
from hpcgemma.supervise.allocation import free_port, rank_threads


@pytest.fixture
def given_out(tmp_path: Path) -> Path:
    """What Linux says of the ports that it gives to whoever asks for any."""
    file = tmp_path / "ip_local_port_range"
    file.write_text("32768\t60999\n")
    return file


def test_the_port_where_ranks_meet_is_none_that_linux_gives_to_others(given_out: Path) -> None:
    assert all(10_000 <= free_port(given_out) < 32_768 for _ in range(200))


def test_a_port_that_somebody_listens_on_is_not_taken(given_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("", free_port()))
        server.listen()
        taken: int = server.getsockname()[1]
        monkeypatch.setattr(allocation, "_FIRST_PORT", taken)
        given_out.write_text(f"{taken + 1} 60999")
        assert free_port(given_out) != taken


@pytest.mark.parametrize("said", ["", "1024 65535", "nonsense"])
def test_where_linux_gives_out_all_ports_or_does_not_say_it_is_any_free_one(given_out: Path, said: str) -> None:
    given_out.write_text(said)
    assert free_port(given_out) > 0
    assert free_port(given_out.with_name("none")) > 0


def test_a_rank_has_a_thread_for_each_of_its_cpus_and_else_its_share_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    assert [rank_threads(2, 3), rank_threads(2, None), rank_threads(16, None)] == [3, 4, 1]
