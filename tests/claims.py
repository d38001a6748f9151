"""Numbers that no two living test processes of this machine use at once: ports, ranges of job ids.

A claim is a Unix socket with an abstract name (unix(7)): Linux gives a name to one process only, and takes it back
when that process ends, in whatever way. So nothing is left behind, and two runs of the tests need not know each other.
"""

from __future__ import annotations

import functools
import random
import socket
from collections.abc import Sequence

RENDEZVOUS_PORTS = range(12_000, 20_000)
"""Below the ports the kernel gives to outgoing connections, and below those of the test clusters."""


class Claim:
    """A number that is this process's own until it is released or forgotten, or the process ends."""

    def __init__(self, number: int, name: socket.socket) -> None:
        self.number = number
        self._name = name

    def release(self) -> None:
        """Let others have the number."""
        self._name.close()


def claim(kind: str, numbers: Sequence[int]) -> Claim:
    """Claim one of several numbers, from a random one on.

    Args:
        kind: What the numbers are of, as ``tcp-port``; a number is claimed once for each kind.
        numbers: Which will do.

    Raises:
        LookupError: All are claimed.
    """
    start = random.SystemRandom().randrange(len(numbers))
    for place in range(len(numbers)):
        number = numbers[(start + place) % len(numbers)]
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f"\0hpcgemma-tests/{kind}/{number}")
        except OSError:
            name.close()
            continue
        return Claim(number, name)
    raise LookupError(f"every {kind} of {len(numbers)} is claimed by tests that run on this machine")


def claim_port(ports: Sequence[int]) -> Claim:
    """Claim a TCP port of the loopback on which nothing listens."""
    while True:
        port = claim("tcp-port", ports)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port.number))
            except OSError:
                port.release()
                continue
        return port


def rendezvous_port() -> int:
    """Return the port where the ranks that this process starts meet, one group after the other."""
    return _rendezvous().number


@functools.cache
def _rendezvous() -> Claim:
    return claim_port(RENDEZVOUS_PORTS)
