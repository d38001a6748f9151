"""Rows 1 to 5: the scheduler takes the nodes away, with notice or without."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

from hpcgemma import assets
from tests.slurm.login import REQUEUE, SPOT, SUCCESSOR, nodes_of, preempt, run_ids, set_time_limit

from .lab import Lab
from .observation import Observation

_WARNING = "#SBATCH --signal={{ signal | directive }}"


def with_grace(lab: Lab) -> Observation:
    """Preemption with a grace time; the run goes on in a successor."""
    run = lab.submit("with-grace")
    fault = preempt(run, lab.cluster)
    seen = lab.completed(run, "saved, and went on in a successor", [fault])
    ended = run.events("ended")[0]
    assert (ended["ending"], ended["cause"]) == ("stopped", "preempted")
    [continued] = run.events("continued")
    assert continued["by"] == "successor"
    assert run_ids(run, "started") == [run.job_id, continued["job_id"]]
    assert run.events("resumed")[0]["step"] == ended["step"]
    return seen


def with_grace_by_requeue(lab: Lab) -> Observation:
    """Preemption with a grace time; the run puts its job back into the queue, whose log is kept (row 29)."""
    run = lab.submit("with-grace-requeue", profile=REQUEUE)
    fault = preempt(run, lab.cluster)
    seen = lab.completed(run, "saved, and put its own job back into the queue", [fault])
    ended = run.events("ended")[0]
    assert (ended["ending"], ended["cause"]) == ("stopped", "preempted")
    assert [event["by"] for event in run.events("continued")] == ["requeue"]
    assert run_ids(run, "started") == [run.job_id, run.job_id]
    return seen


def log_of_a_requeued_job(lab: Lab) -> Observation:
    """What the first attempt of a requeued job had written is there after the second."""
    run = lab.submit("kept-log", profile=REQUEUE)
    fault = preempt(run, lab.cluster)
    seen = lab.completed(run, "the job's log holds both attempts", [fault])
    log = "".join(path.read_text() for path in run.folder.glob("submitit/*.out"))
    assert log.index("attempt 1 on ") < log.index("attempt 1 ended: ") < log.index("attempt 2 on ")
    return seen


def user_signal(lab: Lab) -> Observation:
    """Preemption where the site sends the signal that the job asked for, to the batch shell."""
    lab.configure(send_user_signal=True)
    run = lab.submit("user-signal")
    fault = preempt(run, lab.cluster)
    seen = lab.completed(run, "the batch shell got SIGUSR2, the ranks saved", [fault])
    assert run.events("warned")[0]["signal"] == "SIGUSR2"
    assert run.events("ended")[0]["cause"] == "preempted"
    return seen


def signal_to_steps(lab: Lab) -> Observation:
    """Preemption with a template of the user's own, whose warning goes to the ranks instead of the batch shell."""
    return _signal_to_steps(lab, "signal-to-steps", user_signal=False)


def user_signal_to_steps(lab: Lab) -> Observation:
    """The same where the site sends the signal that the job asked for."""
    return _signal_to_steps(lab, "user-signal-to-steps", user_signal=True)


def _signal_to_steps(lab: Lab, name: str, *, user_signal: bool) -> Observation:
    lab.configure(send_user_signal=user_signal)
    templates = Path(lab.terminal.environment["HPCGEMMA_CONFIG_DIR"]) / "job_templates"
    templates.mkdir(parents=True)
    try:
        base = (assets.shipped_folder("template") / "base.sbatch.j2").read_text()
        assert _WARNING in base
        own = base.replace(_WARNING, "#SBATCH --signal={{ signal | replace('B:', '') | directive }}")
        (templates / "base.sbatch.j2").write_text(own)
        run = lab.submit(name)
        assert "--signal=USR2@" in (run.folder / "job.sbatch").read_text()
        run.wait_for_step(25)
        run.freeze()
        fault = time.time()
        lab.cluster.urgent_job(nodes=nodes_of(lab.cluster, run.job_id), seconds=5)
        # Either signal brings the ranks a SIGCONT.
        seen = lab.completed(run, "the ranks got the notice, and saved", [fault])
    finally:
        shutil.rmtree(templates)
    assert run.events("ended")[0]["cause"] == "preempted"
    return seen


def without_grace(lab: Lab) -> Observation:
    """Preemption where the partition grants no grace."""
    lab.configure(grace_time_s=0)
    run = lab.submit("without-grace")
    fault = preempt(run, lab.cluster)
    seen = lab.completed(run, "SIGTERM to all, SIGKILL 5 s later; went on from the newest checkpoint", [fault], lost=20)
    assert len(run.events("started")) == 2
    return seen


def cancelled_partition(lab: Lab) -> Observation:
    """Preemption where it means cancelling, without grace."""
    run = lab.submit("cancelled-partition", profile=SPOT)
    run.wait_for_step(25)
    [ahead] = run_ids(run, "linked")
    assert lab.cluster.job_state(ahead) == "PENDING"
    fault = time.time()
    lab.cluster.urgent_job(nodes=nodes_of(lab.cluster, run.job_id), seconds=5)
    seen = lab.completed(run, "cancelled by Slurm; the job that waited ahead went on", [fault], lost=95)
    assert run_ids(run, "started") == [run.job_id, ahead]
    lab.cluster.wait_for(lambda: not _queued(lab), "the end of what waited ahead")
    return seen


def _queued(lab: Lab) -> str:
    return lab.cluster.run("squeue", "-h", "--me", "--states=PENDING").stdout.strip()


def time_limit(lab: Lab) -> Observation:
    """The time limit, going on by a successor."""
    return _time_limit(lab, "time-limit", SUCCESSOR, "successor")


def time_limit_by_requeue(lab: Lab) -> Observation:
    """The time limit, going on by requeue."""
    return _time_limit(lab, "time-limit-requeue", REQUEUE, "requeue")


def _time_limit(lab: Lab, name: str, profile: str, way: str) -> Observation:
    run = lab.submit(name, "--time", "30", profile=profile)
    run.wait_for_step(10)
    run.freeze()
    # The limit comes closer only now: on a busy machine a start takes longer than the shortest limit, a minute.
    elapsed_s = time.time() - run.events("submitted")[0]["time"]
    set_time_limit(lab.cluster, run.job_id, math.ceil((elapsed_s + 45) / 60))
    warned = run.wait_for_event("warned")
    run.thaw()
    assert (warned["signal"], warned["cause"]) == ("SIGUSR2", "time limit")
    continued = run.wait_for_event("continued")
    assert continued["by"] == way
    set_time_limit(lab.cluster, continued["job_id"], 30)
    happened = f"warned before the limit; saved, and went on by {way}"
    seen = lab.completed(run, happened, [warned["time"]])
    assert len(run.events("started")) == 2
    return seen
