"""How the supervisor gets to where the ranks run: through Slurm, or as a process of this machine."""

from __future__ import annotations

import sys
from pathlib import Path


def supervisor_command(submitit_dir: Path) -> list[str]:
    """Return the command line by which submitit's worker loads the supervisor and calls it.

    ``-P`` keeps the working folder out of the import path: a user's own queue.py must not shadow anything.
    """
    return [sys.executable, "-P", "-u", "-m", "submitit.core._submit", str(submitit_dir)]
