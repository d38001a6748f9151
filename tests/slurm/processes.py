"""Processes of a test cluster: started, found again through /proc, and surely ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def start_daemon(argv: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a daemon in the foreground, in a session of its own, its output appended to ``log``."""
    with log.open("ab") as output:
        return subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            start_new_session=True,
        )


def end_daemon(process: subprocess.Popen[bytes], *, patience_s: float = 0.0) -> None:
    """End a daemon: SIGTERM if there is patience for it, then SIGKILL to its process group."""
    if process.poll() is None and patience_s > 0:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment a process was started with; empty if it is gone."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    entries = (entry.decode(errors="replace").partition("=") for entry in raw.split(b"\0") if entry)
    return {name: value for name, _, value in entries}


def command_line(pid: int) -> str:
    """Return a process's command line with spaces between the words; empty if it is gone."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def all_pids() -> list[int]:
    """Return the ids of all processes of this machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def parent_of(pid: int) -> int:
    """Return a process's parent; 0 if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def is_alive(pid: int) -> bool:
    """Return whether a process has not ended; one that only waits to be reaped by its parent has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def owners_of_sockets(folder: Path) -> set[int]:
    """Return the processes that listen on a Unix socket inside ``folder``.

    This finds each slurmstepd, which overwrites its own environment and is a child of nobody.
    """
    inodes = set()
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
        words = line.split()
        if words and words[-1].startswith(f"{folder}/"):
            inodes.add(f"socket:[{words[6]}]")
    owners = set()
    for pid in all_pids():
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                if str(descriptor.readlink()) in inodes:
                    owners.add(pid)
                    break
    return owners


def with_descendants(pids: Iterable[int]) -> set[int]:
    """Return the given processes and all below them."""
    found = set(pids)
    parents = {pid: parent_of(pid) for pid in all_pids()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def cluster_processes(folder: Path, conf: Path) -> set[int]:
    """Return every process of a cluster: its daemons, its slurmstepds and all that its jobs started."""
    own_conf = str(conf)
    carriers = {pid for pid in all_pids() if environment_of(pid).get("SLURM_CONF") == own_conf}
    found = with_descendants(carriers | owners_of_sockets(folder))
    return {pid for pid in found if pid != os.getpid() and is_alive(pid)}


def kill_until_gone(folder: Path, conf: Path, timeout_s: float = 10.0) -> None:
    """Send SIGKILL to every process of a cluster until none is left.

    Raises:
        TimeoutError: Some are still there after ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while pids := cluster_processes(folder, conf):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes of the cluster in {folder} do not end: {sorted(pids)}")
        time.sleep(0.02)


def remove_cgroups(node: str, job_ids: range) -> None:
    """Remove the cgroups that killed jobs of a node have left behind; another cluster's stay."""
    for controller in Path("/sys/fs/cgroup").glob(f"*/slurm_{node}"):
        for job in controller.glob("uid_*/job_*"):
            if int(job.name.removeprefix("job_")) in job_ids:
                for inner in sorted((path for path in job.rglob("*") if path.is_dir()), reverse=True):
                    with contextlib.suppress(OSError):
                        inner.rmdir()
                with contextlib.suppress(OSError):
                    job.rmdir()


def remove_folder(folder: Path) -> None:
    """Remove a cluster's folder, whatever state it is in."""
    shutil.rmtree(folder, ignore_errors=True)
