"""`hpcgemma submit`: plan, check, render, submit. A newcomer reads this file first."""

from __future__ import annotations

import click

from hpcgemma.cli import options


@click.command()
@click.option("--profile", "profile_name", required=True, metavar="NAME", help="Cluster profile: a name or a file.")
@click.option("--recipe", "recipe_name", required=True, metavar="NAME", help="Recipe: a name or a file.")
@click.option("--set", "settings", multiple=True, metavar="A.B=C", help="Set a field of the recipe; repeatable.")
@click.option("--name", metavar="NAME", help="Name of the run. Default: the recipe's, with a number.")
@click.option("--account", metavar="NAME", envvar="HPCGEMMA_ACCOUNT", help="Account that pays. [env: HPCGEMMA_ACCOUNT]")
@click.option("--time", "walltime", metavar="HH:MM:SS", help="Time limit of one job; the run goes on in further jobs.")
@click.option(
    "--runs-dir",
    metavar="DIR",
    envvar="HPCGEMMA_RUNS_DIR",
    help="Folder of run folders. [env: HPCGEMMA_RUNS_DIR]",
)
@options.dry_run
@options.wait
@options.json_output
def submit(
    profile_name: str,
    recipe_name: str,
    settings: tuple[str, ...],
    name: str | None,
    account: str | None,
    walltime: str | None,
    runs_dir: str | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> int:
    r"""Plan, check, render and submit a run.

    \b
    hpcgemma submit --profile leonardo --recipe gemma2_9b_lora --account NAME
    hpcgemma submit --profile local --recipe svg_captions_tiny --set training.epochs=1 --wait
    """
    from pathlib import Path

    from hpcgemma import preflight, userconfig
    from hpcgemma.cli import console, waiting
    from hpcgemma.executors import submission
    from hpcgemma.plan import make_plan
    from hpcgemma.profiles import load_profile
    from hpcgemma.recipes import load_recipe
    from hpcgemma.recipes.paths import with_absolute_paths
    from hpcgemma.runs import store
    from hpcgemma.slurm.client import SlurmClient
    from hpcgemma.supervise.supervisor import supervise

    profile = load_profile(profile_name)
    recipe = with_absolute_paths(load_recipe(recipe_name, settings), Path.cwd())
    config = userconfig.load_user_config()
    account = userconfig.resolve_account(account, profile, config)
    folder_of_runs = userconfig.resolve_runs_dir(runs_dir, profile, config, account)

    plan = make_plan(
        profile,
        recipe,
        run_name=name or store.free_name(folder_of_runs, recipe.name),
        run_id=store.new_run_id(),
        account=account,
        walltime=walltime,
    )
    client = SlurmClient()
    findings = preflight.check_recipe(plan, recipe)
    if dry_run:
        for finding in findings:
            console.say(f"Warning: {finding.problem}\n   Try: {finding.hint}")
        console.result(submission.preview(plan, folder_of_runs / plan.run_name))
        return 0
    if plan.scheduler == "slurm":
        findings += preflight.check_partition(plan, client)
    preflight.refuse(findings)

    entry, job_id = submission.submit_new(plan, profile, recipe, folder_of_runs, client, supervise)
    if as_json and not wait:
        console.result_json({"name": entry.name, "run_id": entry.run_id, "job_id": job_id, "folder": entry.path})
    elif not as_json:
        console.say(f"submitted run {entry.name} as job {job_id}")
        console.say(f"folder {entry.path}")
        if not wait:
            console.say(f"look: hpcgemma status {entry.name}")
    return waiting.wait_for(entry, client, plan.poll_interval_s, as_json=as_json) if wait else 0
