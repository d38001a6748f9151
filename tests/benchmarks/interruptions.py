"""The ETTR of a run that is interrupted every two minutes on a test cluster, and what its restarts are made of.

Run as ``python -m tests.benchmarks.interruptions --by preemption``; the figures go into docs/benchmarks.md.
``--by kill`` ends a rank with SIGKILL in place of preempting the job.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from pathlib import Path

from hpcgemma.runs.restart import restarts
from hpcgemma.runs.time_use import costs, predicted_ettr
from tests.scenario import Training, opened_terminal, wait_until
from tests.slurm.cluster import SlurmCluster
from tests.slurm.login import SUCCESSOR, TWO_NODES, LoginNode, nodes_of

CHANGES = ("training.max_steps=1000000", "training.epochs=100000", "evaluation.every_steps=100000")
SETTINGS = tuple(word for change in (*CHANGES, "checkpoint.every_steps=auto") for word in ("--set", change))
HOURS = (2, 24)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=13, help="how long the run is watched")
    parser.add_argument("--every-s", type=float, default=120, help="seconds between two interruptions")
    parser.add_argument("--by", choices=("preemption", "kill"), default="preemption", help="what interrupts it")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="hpcgemma-") as root,
        opened_terminal(Path(root)) as terminal,
        SlurmCluster(accounting=False, grace_time_s=60) as cluster,
    ):
        login = LoginNode(terminal, cluster)
        run = login.submit("interrupted", SUCCESSOR, *TWO_NODES, *SETTINGS)
        run.wait_for_event("training")
        began = time.time()
        count = 0
        while (count + 1) * options.every_s < options.minutes * 60:
            count += 1
            time.sleep(max(0.0, began + count * options.every_s - time.time()))
            interrupt(run, cluster, options.by)
            run.wait_for_event("training", count=count + 1)
        time.sleep(max(0.0, began + options.minutes * 60 - time.time()))
        show(run, count)
        login.call("cancel", run.name)
        wait_until("the end", lambda: run.status()["state"] == "CANCELLED")


def interrupt(run: Training, cluster: SlurmCluster, by: str) -> None:
    """Interrupt a run that trains."""
    if by == "kill":
        os.kill(run.rank_pids()[1], signal.SIGKILL)
    else:
        cluster.urgent_job(nodes=nodes_of(cluster, run.events("started")[-1]["job_id"]), seconds=1)


def show(run: Training, count: int) -> None:
    """Print where the time went, the parts of each restart, and what the model predicts with these costs."""
    facts = run.status()["time"]
    print(f"{count} interruptions, {run.step()} steps, ETTR {facts['ettr']:.3f}")
    for word in ("productive", "saving", "restarting", "lost", "queued"):
        print(f"  {word:<11} {facts[f'{word}_s']:8.1f} s")
    print(f"  lost steps  {facts['lost_steps']:8}")
    measured = restarts(run.events())
    print("restarts, seconds: " + ", ".join(f"{sum(each.values()):.1f}" for each in measured))
    for part, median in facts["restart_s"].items():
        print(f"  {part:<11} median {median:6.2f}   longest {max(each.get(part, 0.0) for each in measured):6.2f}")
    known = costs(run.events())
    assert known is not None
    print(f"a save {known.save_s:.2f} s, every {known.interval_s:.0f} s; a restart {known.restart_s:.1f} s")
    for hours in HOURS:
        measured_costs = {"save_s": known.save_s, "interval_s": known.interval_s, "restart_s": known.restart_s}
        unannounced = predicted_ettr(**measured_costs, mtti_s=hours * 3600)
        announced = predicted_ettr(**measured_costs, mtti_s=hours * 3600, lost_s=0)
        print(f"predicted, interrupted every {hours} h: {announced:.4f} with notice, {unannounced:.4f} without")


if __name__ == "__main__":
    main()
