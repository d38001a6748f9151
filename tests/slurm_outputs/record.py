"""Record what the real Slurm prints, for the tests that run without one: ``python tests/slurm_outputs/record.py``.

Writes ``slurm-VERSION.json`` beside itself: the name of a case -> command, exit status, output, complaint. Folder, host
name, job ids and dates are replaced by fixed ones, so that two recordings differ in what Slurm does only.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from hpcgemma.slurm import commands, orders, qos  # noqa: E402 - found through the line above
from tests.slurm.cluster import SlurmCluster  # noqa: E402

HOSTILE_NAME = "we|ird na\tme \x1f é'\"$(x)\nsecond=line"
COMMENT = "hpcgemma run=abc|def; step=3"
FIRST_JOB_ID = 1000
FIRST_TIME = datetime(2026, 1, 31, 12, 0, 0)
LONG_AGO = datetime(2000, 1, 1)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")

REFUSED: dict[str, list[str]] = {
    "account": ["--account=someone_else"],
    "qos": ["--qos=boost_usr_prod"],
    "partition": ["--partition=nowhere"],
    "partition_time": ["--time=9-00:00:00"],
    "partition_nodes": ["--nodes=5"],
    "memory": ["--mem=900G"],
    "cpus": ["--cpus-per-task=64"],
    "gpus": ["--gres=gpu:5"],
    "gpu_type": ["--gres=gpu:h100:1"],
    "feature": ["--constraint=h100"],
    "qos_nodes": ["--qos=boost_qos_dbg", "--nodes=3"],
    "qos_time": ["--qos=boost_qos_dbg", "--time=60"],
    "qos_submit": ["--qos=boost_qos_dbg", "--time=10"],
    "dependency": ["--dependency=nonsense"],
    "node_name": ["--nodelist=node9"],
}


class Recorder:
    """Runs commands on a cluster and keeps what they print."""

    def __init__(self, cluster: SlurmCluster) -> None:
        self.cluster = cluster
        self.cases: dict[str, dict[str, Any]] = {}

    def record(self, case: str, argv: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command and keep its output under a name."""
        answer = self.cluster.run(*argv)
        self.cases[case] = {
            "argv": argv,
            "returncode": answer.returncode,
            "stdout": answer.stdout,
            "stderr": answer.stderr,
        }
        return answer

    def as_json(self) -> str:
        """Return all cases with everything that is by chance replaced."""
        text = json.dumps(self.cases, indent=1, ensure_ascii=True)
        text = text.replace(str(self.cluster.folder), "/cluster")
        text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "host", text)
        text = re.sub(r"\blocalhost:\d{3,5}\b", "localhost:0", text)
        first = self.cluster.job_ids[0]
        for number in self.cluster.job_ids[:100]:
            text = re.sub(rf"(?<!\d){number}(?!\d)", str(FIRST_JOB_ID + number - first), text)
        seen = [datetime.fromisoformat(time) for time in TIME.findall(text)]
        start = min(time for time in seen if time.year > 2000)

        def moved(match: re.Match[str]) -> str:
            time = datetime.fromisoformat(match.group())
            return (time if time.year == 2000 else FIRST_TIME + (time - start)).strftime("%Y-%m-%dT%H:%M:%S")

        return TIME.sub(moved, text) + "\n"


def record_all(cluster: SlurmCluster) -> Recorder:
    """Submit jobs of every kind and record what each command says about them."""
    recorder = Recorder(cluster)
    running = cluster.submit(
        "--nodelist=node1,node2",
        "--gres=gpu:4",
        "--output=/dev/null",
        f"--job-name={HOSTILE_NAME}",
        f"--comment={COMMENT}",
        "--wrap=exec sleep 1000",
    )
    failed = cluster.submit("--nodelist=node3", "--output=/dev/null", "--wrap=exit 3")
    cancelled = cluster.submit("--hold", "--output=/dev/null", "--wrap=true")
    waiting = cluster.submit(f"--dependency=afterany:{running}", "--output=/dev/null", "--wrap=true")
    array = cluster.submit("--hold", "--array=0-3", "--output=/dev/null", "--wrap=true")
    requeued = cluster.submit("--nodelist=node3", "--output=/dev/null", "--wrap=exec sleep 1000")
    cluster.wait_for(lambda: cluster.job_state(running) == "RUNNING", "the job to run")
    cluster.wait_for(lambda: cluster.job_state(failed) == "FAILED", "the job to fail")
    cluster.wait_for(lambda: cluster.job_state(requeued) == "RUNNING", "the job to run")
    cluster.run("scancel", cancelled)
    cluster.run("scontrol", "requeue", requeued)
    cluster.wait_for(lambda: cluster.job_state(requeued) == "PENDING", "the requeue")
    for case, arguments in REFUSED.items():
        if case == "qos_submit":
            for _ in range(2):
                cluster.submit("--hold", "--output=/dev/null", *arguments, "--wrap=true")
        recorder.record(f"refused_{case}", ["sbatch", "--parsable", "--output=/dev/null", *arguments, "--wrap=true"])
    recorder.record("submitted", ["sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true"])
    recorder.record("submitted_in_words", ["sbatch", "--hold", "--output=/dev/null", "--wrap=true"])

    everything = [running, failed, cancelled, waiting, array, requeued]
    recorder.record("squeue", commands.squeue_argv(everything))
    recorder.record("squeue_mine", commands.squeue_argv())
    recorder.record("squeue_unknown", commands.squeue_argv(["99"]))
    recorder.record("show_pending", commands.show_job_argv(waiting))
    recorder.record("show_requeued", commands.show_job_argv(requeued))
    recorder.record("show_unknown", commands.show_job_argv("99"))
    recorder.record("requeue_pending", orders.requeue_argv(waiting))
    recorder.record("requeue_unknown", orders.requeue_argv("99"))
    recorder.record("start_now_unknown", orders.start_now_argv("99"))
    recorder.record("sinfo", commands.sinfo_argv("boost_usr_prod"))
    recorder.record("sinfo_unknown", commands.sinfo_argv("nowhere"))
    recorder.record("show_config", commands.show_config_argv())
    recorder.record("show_partitions", commands.show_partitions_argv())
    recorder.record("show_qos", qos.show_qos_argv())
    recorder.record("associations", qos.associations_argv("root"))
    stepped = cluster.submit(
        "--nodelist=node4", "--time=20", "--output=/dev/null", "--wrap=srun sleep 1; exec srun sleep 1000"
    )
    steps = commands.steps_argv(stepped)
    cluster.wait_for(lambda: ".1\n" in cluster.run(*steps).stdout, "the second step")
    recorder.record("steps", steps)
    recorder.record("steps_unknown", commands.steps_argv("99"))
    recorder.record("time_limit", orders.set_time_limit_argv(stepped, 5))
    recorder.record("time_limit_unknown", orders.set_time_limit_argv("99", 5))
    recorder.record("step_unknown", orders.signal_step_argv(f"{stepped}.0", "KILL"))
    recorder.record("batch_unknown", orders.signal_batch_argv("99", "USR2"))
    fixed = cluster.submit("--nodelist=node4", "--no-requeue", "--output=/dev/null", "--wrap=exec sleep 1000")
    cluster.wait_for(lambda: cluster.job_state(fixed) == "RUNNING", "the job to run")
    recorder.record("requeue_forbidden", orders.requeue_argv(fixed))
    cluster.urgent_job(nodes="node2")
    preempted = commands.show_job_argv(running)
    cluster.wait_for(lambda: "PreemptTime=2" in cluster.run(*preempted).stdout, "the preemption to begin")
    recorder.record("show_preempted", preempted)

    accounting = commands.sacct_argv(since=LONG_AGO, job_ids=[running, failed, cancelled, requeued])
    # The accounting is told about a job's name and partition some seconds after its start.
    cluster.wait_for(lambda: cluster.run(*accounting).stdout.count("boost_usr_prod") == 4, "sacct to know all")
    recorder.record("sacct", accounting)
    attempts = commands.sacct_argv(since=LONG_AGO, job_ids=[requeued], every_attempt=True)
    recorder.record("sacct_attempts", attempts)
    recorder.record("sacct_unknown", commands.sacct_argv(since=LONG_AGO, job_ids=["99"]))
    cluster.stop_database()
    recorder.record("sacct_down", accounting)
    cluster.pause_controller()
    recorder.record("squeue_paused", commands.squeue_argv())
    recorder.record("sbatch_paused", ["sbatch", "--parsable", "--output=/dev/null", "--wrap=true"])
    recorder.record("scancel_paused", orders.scancel_argv([running]))
    cluster.resume_controller()
    cluster.stop_controller()
    recorder.record("squeue_down", commands.squeue_argv())
    recorder.record("sbatch_down", ["sbatch", "--parsable", "--output=/dev/null", "--wrap=true"])
    recorder.record("scancel_down", orders.scancel_argv([running]))
    recorder.record("show_down", commands.show_job_argv(running))
    return recorder


def main() -> None:
    """Record everything and write it beside this file."""
    with SlurmCluster(message_timeout_s=2) as cluster:
        version = cluster.run("sbatch", "--version").stdout.split()[-1]
        text = record_all(cluster).as_json()
    with SlurmCluster(accounting=False) as bare:
        recorder = Recorder(bare)
        recorder.record("sacct_disabled", commands.sacct_argv(since=LONG_AGO, job_ids=["99"]))
    with SlurmCluster(preempt_by="qos") as by_qos:
        options = by_qos.run("sacctmgr", "--immediate", "modify", "qos", "spare", "set", "PreemptExemptTime=01:00:00")
        assert options.returncode == 0, options.stderr
        preempting = Recorder(by_qos)
        preempting.record("show_preempting_qos", qos.show_qos_argv())
        by_qos.stop_database()
        preempting.record("show_qos_down", qos.show_qos_argv())
    cases = (
        json.loads(text)
        | recorder.cases
        | json.loads(re.sub(r"localhost:\d+", "localhost:0", json.dumps(preempting.cases)))
    )
    target = HERE / f"slurm-{version}.json"
    target.write_text(json.dumps(cases, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    print(f"{len(cases)} cases in {target.name}")


if __name__ == "__main__":
    main()
