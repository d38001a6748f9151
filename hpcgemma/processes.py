"""This machine and its processes, told apart by more than their numbers, which are used again."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path


def process_start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot (proc(5)); None where it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def process_age_s() -> float:
    """Return the seconds since this process was started, whatever it has been executed as since; 0.0 if unknown."""
    started = process_start_ticks(os.getpid())
    try:
        uptime_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return 0.0
    return 0.0 if started is None else max(0.0, uptime_s - started / os.sysconf("SC_CLK_TCK"))


def child_pids(pid: int) -> list[int]:
    """Return the processes that a process has started and that live, oldest first; none where it is gone."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in path.read_text(encoding="ascii").split()]
        except OSError:
            continue
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of all that it has started, dead or alive, in seconds; 0.0 where it is gone.

    Source: proc(5): utime, stime, and cutime, cstime of the children that it has waited for.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    ticks = sum(int(word) for word in stat.rpartition(")")[2].split()[11:15])
    return ticks / os.sysconf("SC_CLK_TCK") + sum(cpu_seconds(child) for child in child_pids(pid))


def command_line(pid: int) -> str:
    """Return the command line of a process, its words parted by spaces; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", errors="replace").strip()
    except OSError:
        return ""


def boot_id() -> str:
    """Return what tells this start of this machine from its others; empty where it cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def node_name(environment: Mapping[str, str]) -> str:
    """Return this machine's name in Slurm's words; without Slurm, the host's."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()
