"""Inside the job of one command: the program of the trainer that does its work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hpcgemma.runs.command_job import CommandJob


def run_command(folder: str) -> None:
    """Run the program that a job's folder names; what submitit's worker calls.

    Args:
        folder: Path of the job's folder.

    Raises:
        SystemExit: The program failed; with its exit code, which becomes the job's.
    """
    job = CommandJob(Path(folder))
    program, request = job.request()
    done = subprocess.run(
        [sys.executable, "-P", "-u", "-m", f"hpcgemma.train.commands.{program}"],
        input=json.dumps(request).encode(),
        check=False,
    )
    if done.returncode < 0:  # whoever sent the signal knows why: Slurm tells
        sys.exit(128 - done.returncode)
    job.end(done.returncode)
    if done.returncode:
        sys.exit(done.returncode)
