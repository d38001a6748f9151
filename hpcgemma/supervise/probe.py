"""What a node says of its own health: ``python -m hpcgemma.supervise.probe PLACE GPUS``, one process a node.

It imports no more than it needs, says on standard output what it is about to do before it does it, so that what a node
hangs in can be told, and ends with the faults that it found. Each line is a JSON object.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hpcgemma.processes import node_name

_CONTENT = b"whether this node can write and read what the ranks are about to\n" * 64
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TEMPORARY = Path("/tmp")  # noqa: S108 - what is looked at, not what is used
_GPU_TOOL = "nvidia-smi"
_GPU_TOOL_TIMEOUT_S = 30.0
"""The driver sets up every GPU when nobody has them open, which takes seconds; a driver that hangs takes for ever."""
_KILLED_WITHIN_S = 1.0
_ROWS_QUERY = "--query-remapped-rows=gpu_bus_id,remapped_rows.pending,remapped_rows.failure"


def folder_fault(folder: Path, name: str) -> str:
    """Return why a small file cannot be written in the run folder and read again; empty where it can.

    A full disk or quota is full for all nodes, and so no fault of one.
    """
    try:
        _write_and_read(folder / f".probe-{name}")
    except OSError as error:
        return "" if error.errno in _FULL else f"the run folder cannot be written there: {error.strerror or error}"
    return ""


def temporary_fault() -> str:
    """Return why the node's temporary folder cannot be used; empty where it can.

    A TMPDIR that came along from the login node, and is not there, nobody uses.
    """
    folder = Path(os.environ.get("TMPDIR") or _TEMPORARY)
    if not folder.is_dir():
        folder = _TEMPORARY
    try:
        _write_and_read(folder / f".hpcgemma-probe-{os.getpid()}")
    except OSError as error:
        return f"its temporary folder {folder} cannot be written: {error.strerror or error}"
    return ""


def _write_and_read(path: Path) -> None:
    try:
        with path.open("wb") as file:
            file.write(_CONTENT)
            file.flush()
            os.fsync(file.fileno())
        if path.read_bytes() != _CONTENT:
            raise OSError(errno.EIO, "what was written is read as something else")
    finally:
        path.unlink(missing_ok=True)


def gpu_fault(wanted: int) -> str:
    """Return what is wrong with the node's GPUs; empty where nothing is, or where there is no way to tell.

    Args:
        wanted: GPUs that the job has on this node; 0: none, and nothing is looked at.
    """
    if not wanted:
        return ""
    try:
        listed = _gpu_tool("-L")
        return listing_fault(listed, wanted) or rows_fault(_gpu_tool(_ROWS_QUERY, "--format=csv,noheader"))
    except FileNotFoundError:
        return ""
    except subprocess.TimeoutExpired:
        return f"{_GPU_TOOL} does not answer within {_GPU_TOOL_TIMEOUT_S:.0f} s"


def listing_fault(listed: str, wanted: int) -> str:
    """Return what is wrong by the words of ``nvidia-smi -L``."""
    visible = max(
        len(re.findall(r"^GPU \d+:", listed, re.MULTILINE)), len(re.findall(r"^ +MIG ", listed, re.MULTILINE))
    )
    lines = [line.strip() for line in listed.splitlines()]
    broken = next((line for line in lines if re.search(r"is lost|unable to determine|has failed", line, re.I)), "")
    if visible >= wanted and not broken:
        return ""
    counted = f"{_GPU_TOOL} lists {visible} of the {wanted} GPUs of the job"
    return f"{counted}: {broken}" if broken else counted


def rows_fault(table: str) -> str:
    """Return which GPU's memory is broken by the rows that it remapped; an older driver's complaint says nothing."""
    for line in table.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == 3 and "Yes" in words[1:]:
            what = "could not be remapped" if words[2] == "Yes" else "wait for a reset of the GPU to be remapped"
            return f"rows of the memory of GPU {words[0]} are broken and {what}"
    return ""


def _gpu_tool(*arguments: str) -> str:
    """Return all that the tool prints. One that hangs in the driver cannot be killed, so it is not waited for long."""
    process = subprocess.Popen(
        [_GPU_TOOL, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        return process.communicate(timeout=_GPU_TOOL_TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_KILLED_WITHIN_S)
        raise


def main() -> None:
    """Look at everything, and say what was found."""
    folder, wanted = Path(sys.argv[1]), int(sys.argv[2])
    node = node_name(os.environ)
    checks: dict[str, tuple[str, Callable[[], str]]] = {
        "gpu": (f"looking at its GPUs with {_GPU_TOOL}", lambda: gpu_fault(wanted)),
        "folder": ("writing into the run folder", lambda: folder_fault(folder, node)),
        "temporary": ("writing into its temporary folder", temporary_fault),
    }
    faults: dict[str, str] = {}
    began = time.monotonic()
    for kind, (doing, check) in checks.items():
        _say(node=node, doing=doing)
        if fault := check():
            faults[kind] = fault
    _say(node=node, faults=faults, seconds=round(time.monotonic() - began, 4))


def _say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # a tool that hangs in the driver is not waited for
