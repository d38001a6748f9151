"""How the supervisor gets to where the ranks run: through Slurm, or as a process of this machine."""

from __future__ import annotations

from hpcgemma import snapshot
from hpcgemma.runs.folder import RunFolder


def supervisor_command(folder: RunFolder) -> list[str]:
    """Return the command line by which submitit's worker loads the supervisor and calls it.

    submitit's pickle names the supervisor by its module, so what is imported is the run's own copy of hpcgemma.
    """
    return [*snapshot.start_command(folder.package_dir, "submitit.core._submit"), str(folder.submitit_dir)]
