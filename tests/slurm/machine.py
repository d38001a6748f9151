"""What this machine offers for a test cluster: programs, ports, cgroups."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

BASIC_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
ACCOUNTING_PROGRAMS = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")

# Debian keeps the daemons where an ordinary user's PATH does not look.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/bin", "/bin"])

# Below the ports the kernel gives to outgoing connections, so that nobody takes the port of a stopped
# controller.
PORT_RANGE = range(20000, 32000)


def missing_reason(*, accounting: bool = True) -> str | None:
    """Return the sentence that says why no cluster can be started here; None if one can."""
    if os.geteuid() != 0:
        return "a real Slurm is started as root only, and this is an ordinary user"
    wanted = BASIC_PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ())
    missing = [program for program in wanted if shutil.which(program, path=SEARCH_PATH) is None]
    if missing:
        return f"Slurm is not installed here ({', '.join(missing)} not found); run tools/install_test_programs.sh slurm"
    return None


def cgroup_available() -> bool:
    """Return whether a cluster with ``proctrack="cgroup"`` works here: cgroup v1's freezer, and writable."""
    freezer = Path("/sys/fs/cgroup/freezer")
    if missing_reason(accounting=False) is not None or not (freezer / "cgroup.procs").exists():
        return False
    probe = freezer / f"hpcgemma-probe-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True
