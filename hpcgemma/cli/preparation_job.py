"""`hpcgemma data prepare --submit`: the data prepared in a job without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
    from hpcgemma.cli import command_job
    from hpcgemma.job_plan import plan_cpu_job
    from hpcgemma.runs import store
    from hpcgemma.runs.command_job import planned_job

    job = planned_job(runs_dir, f"prepare-{recipe.name}")
    plan = plan_cpu_job(
        profile,
        name=job.path.name,
        job_identity=store.new_run_id(),
        recipe=recipe.name,
        account=account,
        walltime=walltime,
    )
    request = {
        "recipe": recipe.model_dump(mode="json"),
        "what": "prepare",
        "runs_dir": str(runs_dir),
        "as_json": False,
    }
    return command_job.submit(
        plan,
        job,
        "data",
        request,
        purpose=f"which prepares the data of {recipe.name}",
        findings=preflight.check_preparation(plan, recipe, hub.model_config(recipe)),
        notes=preflight.describe_data(recipe),
        dry_run=dry_run,
        wait=wait,
        as_json=as_json,
    )
