"""How long the commands take as whole processes, beside bare Python and bare Slurm, in one run.

Run it with `make benchmark`; the figures go into docs/benchmarks.md.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.scenario import RECIPE
from tests.slurm.cluster import SlurmCluster, missing_reason

REPEATS = 15
PROFILE = Path(__file__).parent.parent / "profiles" / "leonardo_test.yaml"
HPCGEMMA = str(Path(sys.executable).parent / "hpcgemma")


def seconds(argv: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Return how long a process takes from its start to its end."""
    start = time.perf_counter()
    subprocess.run(argv, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def interleaved(commands: dict[str, Callable[[], list[str]]], folder: Path, environment: dict[str, str]) -> None:
    """Time commands in turn, so that noise meets all of them alike, and print medians."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(REPEATS):
        for name, argv in commands.items():
            times[name].append(seconds(argv(), folder, environment))
    for name, values in times.items():
        print(f"  {name:<34} median {statistics.median(values):.3f} s   least {min(values):.3f} s")


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {
            **os.environ,
            "HPCGEMMA_CONFIG_DIR": str(folder / "config"),
            "HPCGEMMA_DATA_DIR": str(folder / "data"),
            "HPCGEMMA_RUNS_DIR": str(folder / "runs"),
        }
        print("help")
        interleaved(
            {
                "python -c pass": lambda: [sys.executable, "-c", "pass"],
                "hpcgemma --help": lambda: [HPCGEMMA, "--help"],
            },
            folder,
            environment,
        )
        reason = missing_reason()
        if reason is not None:
            print(f"status and submit were not measured: {reason}")
            return
        with SlurmCluster() as cluster:
            environment |= {"SLURM_CONF": str(cluster.conf)}
            cluster.submit("--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=exec sleep 3600")
            script = folder / "bare.sh"
            script.write_text("#!/bin/bash\n#SBATCH --output=/dev/null\n#SBATCH --partition=boost_usr_prod\ntrue\n")
            submit = [HPCGEMMA, "submit", "--profile", str(PROFILE), "--recipe", str(RECIPE), "--account", "demo_acc"]
            subprocess.run([*submit, "--name", "one"], cwd=folder, env=environment, check=True, capture_output=True)
            [job_id] = cluster.run("squeue", "-h", "-n", "one", "-o", "%i").stdout.split()
            print("status of one job")
            interleaved(
                {
                    "squeue -j ID": lambda: ["squeue", "-h", "-j", job_id],
                    "sacct -j ID": lambda: ["sacct", "-X", "-n", "-P", "-j", job_id],
                    "hpcgemma status ID": lambda: [HPCGEMMA, "status", job_id],
                },
                folder,
                environment,
            )
            print("submit")
            interleaved(
                {"sbatch": lambda: ["sbatch", str(script)], "hpcgemma submit": lambda: submit}, folder, environment
            )


if __name__ == "__main__":
    main()
