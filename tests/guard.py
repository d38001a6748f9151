"""Ends what tests have started when their process was killed and could not do it itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

# Reads process group ids from its standard input. When the tests' process dies, in whatever way, the pipe
# closes and the guard ends these groups and the processes that carry the mark, until none is left: a stopped
# one too, and one that was being started.
GUARD_SCRIPT = r"""
trap '' INT TERM HUP
while read -r group; do groups="$groups -$group"; done
[ -z "$groups" ] || kill -9 -- $groups
while files=$(grep -lsF "$NAME=$VALUE" /proc/[0-9]*/environ); [ -n "$files" ]; do
    for file in $files; do
        pid=${file#/proc/}; kill -9 "${pid%/environ}"
    done
    sleep 0.1
done
[ -z "$FOLDER" ] || rm -rf "$FOLDER"
"""


class Guard:
    """A small shell that cleans up after tests that were killed with SIGKILL.

    Args:
        name: Of the variable of the environment by which the processes are known.
        value: Of that variable; of no other processes.
        folder: What to remove then.
    """

    def __init__(self, name: str, value: str, folder: Path | None = None) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", GUARD_SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Apart, so that the guard does not find itself.
            env={"PATH": os.environ.get("PATH", os.defpath), "NAME": name, "VALUE": value, "FOLDER": str(folder or "")},
            start_new_session=True,
            text=True,
        )

    def watch(self, process_group: int) -> None:
        """Tell the guard of one more process group to end."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{process_group}\n")
        self._process.stdin.flush()

    def dismiss(self) -> None:
        """End the guard without letting it do its work: all was ended in an orderly way."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
