"""No two test processes of this machine have the same port or job id."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.claims import claim, claim_port

KIND = "number-of-the-test-of-claims"


def test_a_claimed_number_is_given_to_nobody_else_until_it_is_released() -> None:
    first, second = claim(KIND, range(1, 3)), claim(KIND, range(1, 3))
    assert {first.number, second.number} == {1, 2}
    with pytest.raises(LookupError, match=r"every .* of 2 is claimed"):
        claim(KIND, range(1, 3))
    first.release()
    again = claim(KIND, range(1, 3))
    assert again.number == first.number
    for each in (again, second):
        each.release()


def test_a_claim_ends_with_its_process_even_a_killed_one() -> None:
    program = f"from tests.claims import claim; held = claim({KIND!r}, [7]); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.raises(LookupError):
                claim(KIND, [7])
        finally:
            other.kill()
    claim(KIND, [7]).release()


def test_a_port_that_somebody_listens_on_is_not_claimed() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        taken = server.getsockname()[1]
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            free = other.getsockname()[1]
        port = claim_port([taken, free])
    assert port.number == free
    port.release()
