"""`hpcgemma data prepare --submit`: the data prepared in a job without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcgemma.profiles import Profile
    from hpcgemma.recipes.types import Recipe


def submit(
    profile: Profile,
    recipe: Recipe,
    runs_dir: Path,
    *,
    account: str | None,
    walltime: str | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Plan, check, render and submit a job that prepares a recipe's data, and return the exit code.

    Args:
        profile: What the cluster offers.
        recipe: Whose data.
        runs_dir: The folder of run folders, beside which prepared data are kept.
        account: Account that pays.
        walltime: Time limit; None takes the longest of the queue.
        dry_run: Print the script only.
        wait: Stay until the job has ended.
        as_json: Print JSON.

    Raises:
        InputError: The data cannot be prepared, or the cluster has no place for it.
        SchedulerError: Slurm refused or did not answer.
    """
    from hpcgemma import hub, preflight
    from hpcgemma.cli import command_waiting, console
    from hpcgemma.executors import command_submission
    from hpcgemma.findings import refuse
    from hpcgemma.job_plan import plan_cpu_job
    from hpcgemma.runs import store
    from hpcgemma.runs.command_job import planned_job
    from hpcgemma.slurm.client import SlurmClient
    from hpcgemma.supervise.command_job import run_command

    job = planned_job(runs_dir, f"prepare-{recipe.name}")
    plan = plan_cpu_job(
        profile,
        name=job.path.name,
        job_identity=store.new_run_id(),
        recipe=recipe.name,
        account=account,
        walltime=walltime,
    )
    client = SlurmClient()
    findings = preflight.check_preparation(plan, recipe, hub.model_config(recipe))
    data = preflight.describe_data(recipe)
    if dry_run:
        script = command_submission.preview_command(plan, job)
        for finding in findings:
            console.say(f"Warning: {finding.problem}\n   Try: {finding.hint}")
        for line in data:
            console.say(line)
        console.result(script)
        return 0
    findings += preflight.check_partition(plan, client)
    refuse(findings)

    request = {
        "recipe": recipe.model_dump(mode="json"),
        "what": "prepare",
        "runs_dir": str(runs_dir),
        "as_json": False,
    }
    job_id = command_submission.submit_command(plan, job, "data", request, client, run_command)
    said: dict[str, Any] = {
        "name": plan.run_name,
        "job_id": job_id,
        "folder": str(job.path),
        "log": str(job.log_file(job_id)),
        "data": data,
    }
    if as_json and not wait:
        console.result_json(said)
    elif not as_json:
        console.say(f"submitted job {job_id}, which prepares the data of {recipe.name}")
        for line in data:
            console.say(line)
        console.say(f"log {said['log']}")
        if not wait:
            console.say(f"look: hpcgemma status {job_id}   end it: scancel {job_id}")
    if not wait:
        return 0
    code = command_waiting.wait_for_job(job, job_id, plan.comment, client, plan.poll_interval_s)
    if as_json:
        console.result_json(said | {"exit_code": code})
    return code
