"""`hpcgemma evaluate --submit`: a run judged in a job of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def submit(
    run: Path, request: Mapping[str, Any], *, walltime: str | None, dry_run: bool, wait: bool, as_json: bool
) -> int:
    """Submit a job that evaluates a run as a request says, and return the exit code.

    Args:
        run: The run folder.
        request: What the program is asked.
        walltime: Time limit; None takes that of the run's jobs.
        dry_run: Print the script only.
        wait: Stay until the job has ended.
        as_json: Print JSON.

    Raises:
        InputError: The run has no scheduler, or its rows are not there.
        SchedulerError: Slurm refused or did not answer.
    """
    from hpcgemma.cli import command_job
    from hpcgemma.errors import InputError
    from hpcgemma.plan import Plan, plan_job_about
    from hpcgemma.profiles import Profile
    from hpcgemma.rows.files import find_files
    from hpcgemma.runs import store
    from hpcgemma.runs.command_job import planned_job
    from hpcgemma.runs.folder import RunFolder

    content = store.read_run_file(RunFolder(run))
    plan = Plan.from_mapping(content["plan"])
    if plan.scheduler != "slurm":
        raise InputError(
            f"profile {plan.profile!r} has no queue to submit to", "leave --submit out, and the work is done here"
        )
    if request["data"] is not None:
        find_files([request["data"]], "--data")
    job = planned_job(run.parent, f"evaluate-{run.name}")
    job_plan = plan_job_about(
        plan,
        Profile.model_validate(content["profile"]),
        name=job.path.name,
        job_identity=store.new_run_id(),
        walltime=walltime,
    )
    return command_job.submit(
        job_plan,
        job,
        "evaluate",
        request,
        purpose=f"which evaluates run {run.name}",
        findings=[],
        dry_run=dry_run,
        wait=wait,
        as_json=as_json,
    )
