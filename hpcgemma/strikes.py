"""Strikes against nodes: a plain file per cluster that jobs add to and its user may edit.

A line is a strike; who deletes it takes it back. What is no strike is passed over and left where it is. It lies in the
user's data folder, which login and compute nodes share, so several jobs may write at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpcgemma import assets, files

STRIKES_FOR_GOOD = 2
"""Incidents after which a node is left out of every later job."""

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_LINE = re.compile(
    rf"(?P<time>\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d)\s+(?P<node>{NODE_NAME.pattern})\s+"
    r"(?P<run>\S+)/(?P<attempt>\d+)\s+(?P<why>.*)"
)
_LONGEST_WHY = 200
_WRITER_WAIT_S = 5.0
"""A change takes milliseconds: one that seems to last longer was made by a process that has died over it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """One incident on one node."""

    time: str
    """UTC, as ``2026-11-25 20:31:07``."""
    node: str
    run: str
    attempt: int
    """Of the run: what two ranks, or a rank and a check, say of the same attempt is one incident."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StrikeList:
    """What a cluster's file says."""

    strikes: tuple[Strike, ...] = ()
    problem: str = ""
    """What of the file is not understood, as a sentence; empty where all is."""

    def of(self, node: str) -> list[Strike]:
        """Return the strikes of a node, the first of each incident, in the file's order."""
        first: dict[tuple[str, int], Strike] = {}
        for strike in self.strikes:
            if strike.node == node:
                first.setdefault((strike.run, strike.attempt), strike)
        return list(first.values())

    @property
    def nodes(self) -> list[str]:
        """Every node with a strike, in the order of the first ones."""
        return list(dict.fromkeys(strike.node for strike in self.strikes))

    @property
    def left_out(self) -> list[str]:
        """The nodes that are left out of every later job."""
        return [node for node in self.nodes if len(self.of(node)) >= STRIKES_FOR_GOOD]


def strikes_file(cluster: str) -> Path:
    """Return the file of a cluster, which is called as its profile is."""
    return assets.user_data_dir() / "nodes" / f"{cluster}.txt"


def clusters() -> list[str]:
    """Return the clusters that have a file, sorted."""
    return sorted(path.stem for path in strikes_file("x").parent.glob("*.txt"))


def new_strike(node: str, run: str, attempt: int, why: str) -> Strike:
    """Return a strike of this moment."""
    now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    return Strike(time=now, node=node, run=run, attempt=attempt, why=" ".join(why.split())[:_LONGEST_WHY])


def read_strikes(cluster: str) -> StrikeList:
    """Return the strikes of a cluster. It never fails: a file that is damaged says as much as can be read of it."""
    path = strikes_file(cluster)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return StrikeList()
    except OSError as error:
        return StrikeList(problem=f"{path} cannot be read ({error.strerror}), so no node is left out for its strikes")
    found, strange = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if match := _LINE.fullmatch(line.strip()):
            time_, node, run, attempt, why = match.group("time", "node", "run", "attempt", "why")
            found.append(Strike(time=time_, node=node, run=run, attempt=int(attempt), why=why))
        elif line.strip() and not line.lstrip().startswith("#"):
            strange.append(str(number))
    lines = ", ".join(strange[:5]) + (" …" if strange[5:] else "")
    problem = f"{path}, line {lines}, is no strike and is passed over" if strange else ""
    return StrikeList(strikes=tuple(found), problem=problem)


def add_strike(cluster: str, strike: Strike) -> None:
    """Add a strike.

    Raises:
        OSError: The file cannot be written.
        ValueError: Its node is no node's name.
    """
    if not NODE_NAME.fullmatch(strike.node):
        raise ValueError(f"{strike.node!r} is not the name of a node")
    line = f"{strike.time}  {strike.node:<12}  {strike.run}/{strike.attempt}  {strike.why}\n"
    with _sole_writer(strikes_file(cluster)) as path:
        text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else _head(cluster)
        _replace(path, text + ("" if text.endswith("\n") else "\n") + line)


def forget(cluster: str, node: str) -> int:
    """Take back all strikes of a node, and return how many there were.

    Raises:
        OSError: The file cannot be written.
    """
    with _sole_writer(strikes_file(cluster)) as path:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if path.exists() else []
        kept = [line for line in lines if not ((match := _LINE.fullmatch(line.strip())) and match["node"] == node)]
        if len(kept) < len(lines):
            _replace(path, "".join(f"{line}\n" for line in kept))
    return len(lines) - len(kept)


def _head(cluster: str) -> str:
    return (
        f"# Nodes of {cluster} that failed your runs. {STRIKES_FOR_GOOD} lines of a node leave it out of later jobs.\n"
        f"# Delete a line to take it back, or: hpcgemma nodes --profile {cluster} --forget NODE\n"
        "# UTC                node          run/attempt  why\n"
    )


def _replace(path: Path, text: str) -> None:
    files.write_bytes_atomically(path, text.encode("utf-8", errors="surrogateescape"))


@contextlib.contextmanager
def _sole_writer(path: Path) -> Iterator[Path]:
    """Keep writers apart by a file that only one can create, since file locks do not work on every shared home."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    deadline = time.monotonic() + _WRITER_WAIT_S
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            break
        except FileExistsError:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
    try:
        yield path
    finally:
        lock.unlink(missing_ok=True)
