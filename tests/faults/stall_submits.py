"""Submit while Slurm's controller hangs for a random time at a random moment, and count the jobs that came of it.

    python -m tests.faults.stall_submits --trials 100 --folder runs/faults

sbatch that timed out may have submitted all the same (2 of 2 tried on Slurm 22.05), so a second try makes a second
job. Each trial is one `hpcgemma submit` on a real Slurm whose controller is stopped and goes on again; where the
submission was given up, `hpcgemma status` and `hpcgemma resume` follow, as the error says. In the end a run must have
exactly one job: two are a duplicate, none is a lost one.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.faults.trials import Trials, arguments
from tests.scenario import RECIPE, Terminal, opened_terminal
from tests.slurm.cluster import SlurmCluster
from tests.slurm.login import SUCCESSOR, LoginNode

MESSAGE_TIMEOUT_S = 2
"""Slurm's; sbatch gives up after a few of these."""
STALL_S = (0.5, 12.0)
LONG_STALL_S = (35.0, 60.0)
"""One in ten: for longer than a submission looks for the job that it may have made."""
LATEST_STALL_S = 0.3
"""After sbatch was started: by then it has long asked."""


class Stalling:
    """A cluster whose controller is stopped whenever sbatch is called, as a file says.

    Args:
        cluster: The cluster.
        terminal: Whose commands are to meet it.
    """

    def __init__(self, cluster: SlurmCluster, terminal: Terminal) -> None:
        self._cluster = cluster
        self._moments, tools = cluster.folder / "moments", cluster.folder / "bin"
        self._stall = cluster.folder / "stall"
        """There while a stall is to come or goes on."""
        tools.mkdir()
        self.calm = LoginNode(terminal, cluster)
        (tools / "sbatch").write_text(
            f"#!/bin/sh\nif mv {self._moments} {self._stall}; then\nread after seconds < {self._stall}\n"
            f"( sleep $after; kill -STOP {cluster.controller_pid}; sleep $seconds; "
            f"kill -CONT {cluster.controller_pid}; rm {self._stall} ) > /dev/null 2>&1 &\nfi 2> /dev/null\n"
            f'{shutil.which("sbatch")} "$@"\ncode=$?\nexit $code\n'
        )
        (tools / "sbatch").chmod(0o755)
        path = f"{tools}:{os.environ['PATH']}"
        self._stalled = Terminal(self.calm.folder, {**self.calm.environment, "PATH": path})

    def submit(self, name: str, chance: random.Random) -> dict[str, Any]:
        """Submit a run into a stall and return how many jobs it has in the end."""
        after = chance.uniform(0, LATEST_STALL_S)
        seconds = chance.uniform(*(LONG_STALL_S if chance.random() < 0.1 else STALL_S))
        self._moments.write_text(f"{after:.3f} {seconds:.3f}\n")
        process = self._stalled.start("submit", "--profile", SUCCESSOR, "--recipe", str(RECIPE), "--name", name)
        _, said = process.communicate()
        self._cluster.wait_for(lambda: not self._stall.exists(), "the end of the stall")
        self._cluster.wait_for(lambda: self._cluster.run("sinfo", "-h").returncode == 0, "the controller")
        came_to = "submitted"
        if process.returncode == 3:
            came_to = "kept" if (Path(self.calm.environment["HPCGEMMA_RUNS_DIR"]) / name).exists() else "refused"
        elif process.returncode:
            came_to = "failed"
        if came_to == "kept" and self.calm.json("status", name)["job_id"] is None:
            self.calm.call("resume", name)
        jobs = self._cluster.run("squeue", "-h", "-n", name, "-o", "%i").stdout.split()
        self._cluster.run("scancel", *jobs)
        wanted = 0 if came_to == "refused" else 1
        return {
            "failed": came_to == "failed" or len(jobs) != wanted,
            "came_to": came_to,
            "jobs": len(jobs),
            "stall_s": round(seconds, 2),
            "said": said[-500:] if process.returncode else "",
        }


def main() -> None:
    """Make the trials that are left, and print what came of all."""
    options = arguments(__doc__, trials=100)
    trials = Trials(options.folder / "stall_submits.jsonl", options.trials)
    left = list(trials.left())
    if left:
        with (
            tempfile.TemporaryDirectory(prefix="hpcgemma-") as root,
            opened_terminal(Path(root)) as terminal,
            SlurmCluster(accounting=False, message_timeout_s=MESSAGE_TIMEOUT_S) as cluster,
        ):
            cluster.submit("--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=exec sleep 14400")
            stalling = Stalling(cluster, terminal)
            for trial in left:
                trials.note(trial, stalling.submit(f"stall-{trial}", random.Random(f"{options.seed}/{trial}")))
    sys.exit(trials.summarize("submissions into a stall of Slurm's controller", by="came_to"))


if __name__ == "__main__":
    main()
