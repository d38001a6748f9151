"""How the supervisor gets to where the ranks run: through Slurm, or as a process of this machine."""

from __future__ import annotations

import sys
from pathlib import Path

from hpcgemma import snapshot
from hpcgemma.runs.folder import RunFolder

_WORKER = "submitit.core._submit"


def supervisor_command(folder: RunFolder) -> list[str]:
    """Return the command line by which submitit's worker loads the supervisor and calls it.

    submitit's pickle names the supervisor by its module, so what is imported is the run's own copy of hpcgemma.
    """
    return [*snapshot.start_command(folder.package_dir, _WORKER), str(folder.submitit_dir)]


def worker_command(submitit_dir: Path) -> list[str]:
    """Return the command line by which submitit's worker does one command's work, with the hpcgemma that is installed.

    ``-P`` keeps the working folder out of the import path: a user's own queue.py must not shadow anything.
    """
    return [sys.executable, "-P", "-u", "-m", _WORKER, str(submitit_dir)]
