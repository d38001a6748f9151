"""Inside the job of one command: the program of the trainer that does its work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hpcgemma.runs.command_job import CommandJob, Request
from hpcgemma.supervise.allocation import rank_threads


def run_command(folder: str) -> None:
    """Run the program that a job's folder names; what submitit's worker calls.

    Args:
        folder: Path of the job's folder.

    Raises:
        SystemExit: The program failed; with its exit code, which becomes the job's.
    """
    job = CommandJob(Path(folder))
    wanted = job.request()
    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(rank_threads(wanted.ranks, wanted.cpus_per_rank)))
    done = subprocess.run(command_of(wanted), input=json.dumps(wanted.request).encode(), env=environment, check=False)
    if done.returncode < 0:  # whoever sent the signal knows why: Slurm tells
        sys.exit(128 - done.returncode)
    job.end(done.returncode)
    if done.returncode:
        sys.exit(done.returncode)


def command_of(wanted: Request) -> list[str]:
    """Return the command line of a job's program; srun gives each of several ranks the whole of standard input."""
    program = [sys.executable, "-P", "-u", "-m", f"hpcgemma.train.commands.{wanted.program}"]
    if wanted.ranks == 1:
        return program
    cpus = [f"--cpus-per-task={wanted.cpus_per_rank}"] if wanted.cpus_per_rank else []
    return [
        "srun",
        "--nodes=1",
        f"--ntasks={wanted.ranks}",
        *cpus,
        "--kill-on-bad-exit=1",
        "--mpi=none",
        "--unbuffered",
        *program,
    ]
