"""`hpcgemma submit`: plan, check, render, submit. A newcomer reads this file first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hpcgemma.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hpcgemma.fate import Choice
    from hpcgemma.findings import Finding
    from hpcgemma.plan import Plan


@click.command()
@click.option("--profile", "profile_name", required=True, metavar="NAME", help="Cluster profile: a name or a file.")
@click.option("--recipe", "recipe_name", required=True, metavar="NAME", help="Recipe: a name or a file.")
@options.settings
@click.option("--name", metavar="NAME", help="Name of the run. Default: the recipe's, with a number.")
@click.option("--account", metavar="NAME", envvar="HPCGEMMA_ACCOUNT", help="Account that pays. [env: HPCGEMMA_ACCOUNT]")
@options.walltime
@click.option(
    "--runs-dir",
    metavar="DIR",
    envvar="HPCGEMMA_RUNS_DIR",
    help="Folder of run folders. [env: HPCGEMMA_RUNS_DIR]",
)
@options.links
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
    links: int | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Plan, check, render and submit a run.

    \b
    hpcgemma submit --profile leonardo --recipe gemma2_9b_lora --account NAME
    hpcgemma submit --profile leonardo --recipe gemma2_9b_lora --account NAME --links 4
    hpcgemma submit --profile local --recipe svg_captions_tiny --set training.epochs=1 --wait
    """
    import dataclasses
    from pathlib import Path

    from hpcgemma import hub, preflight, userconfig
    from hpcgemma.cli import chain, console, waiting
    from hpcgemma.executors import submission
    from hpcgemma.executors.exclusion import exclusion_for
    from hpcgemma.findings import refuse
    from hpcgemma.plan import make_plan
    from hpcgemma.profiles import load_profile
    from hpcgemma.recipes import load_recipe
    from hpcgemma.recipes.paths import with_absolute_paths
    from hpcgemma.runs import store
    from hpcgemma.slurm.client import PATIENCE_S, SlurmClient
    from hpcgemma.strategy import with_strategy
    from hpcgemma.supervise.supervisor import supervise

    profile = load_profile(profile_name)
    chain.require_queue(links, profile)
    recipe = with_absolute_paths(load_recipe(recipe_name, settings), Path.cwd())
    config = userconfig.load_user_config()
    account = userconfig.resolve_account(account, profile, config)
    folder_of_runs = userconfig.resolve_runs_dir(runs_dir, profile, config, account)

    model_config = hub.model_config(recipe)
    plan = make_plan(
        profile,
        recipe,
        run_name=name or store.free_name(folder_of_runs, recipe.name),
        run_id=store.new_run_id(),
        account=account,
        walltime=walltime,
        model_config=model_config,
    )
    recipe = with_strategy(recipe, plan.strategy)
    client = SlurmClient(patience_s=PATIENCE_S, on_silence=console.say)
    choice: Choice | None = None
    findings = preflight.check_recipe(plan, recipe, model_config)
    notes = preflight.note_recipe(plan, recipe, model_config)
    data = preflight.describe_data(recipe)
    exclusion = exclusion_for(plan, client)
    notes += exclusion.notes
    if dry_run:
        if plan.scheduler == "slurm":
            plan, choice, cautions = chain.going_on(plan, profile, SlurmClient())  # a preview need not wait for Slurm
            notes += cautions
        script = submission.preview(plan, folder_of_runs / plan.run_name, exclusion.nodes)
        show_preview(plan, script, findings, notes, data, choice, as_json=as_json)
        if links:
            console.say(f"{links} jobs of this script would be queued, each to start when all before it have ended")
        return 0
    if plan.scheduler == "slurm":
        findings += preflight.check_partition(plan, client)
        refuse(findings)
        plan, choice, cautions = chain.going_on(plan, profile, client)
        notes += cautions
    refuse(findings)

    entry, job_id = submission.submit_new(
        plan, profile, recipe, folder_of_runs, client, supervise, links or 0, exclusion.nodes
    )
    notes += chain.queue(entry, plan, client, job_id, links)
    if as_json and not wait:
        console.result_json(
            {
                "name": entry.name,
                "run_id": entry.run_id,
                "job_id": job_id,
                "folder": entry.path,
                "strategy": plan.strategy,
                "strategy_reason": plan.strategy_reason,
                "continue_by": plan.continue_by,
                "continue_reason": choice.reason if choice else None,
                "links": links,
                "left_out": list(exclusion.nodes),
                "data": data,
                "notes": [dataclasses.asdict(note) for note in notes],
            }
        )
    elif not as_json:
        show_notes(notes)
        console.say(f"submitted run {entry.name} as job {job_id}")
        console.say(f"strategy {plan.strategy}: {plan.strategy_reason}")
        for line in data:
            console.say(line)
        if choice is not None:
            console.say(f"goes on by {plan.continue_by}: {choice.reason}")
        if links:
            console.say(chain.describe(entry))
        console.say(f"folder {entry.path}")
        if not wait:
            console.say(f"look: hpcgemma status {entry.name}")
    return waiting.wait_for(entry, client, plan.poll_interval_s, as_json=as_json) if wait else 0


def show_preview(
    plan: Plan,
    script: str,
    findings: Sequence[Finding],
    notes: Sequence[Finding],
    data: Sequence[str],
    choice: Choice | None = None,
    *,
    as_json: bool,
) -> None:
    """Print what would be submitted, and what would be refused."""
    import dataclasses

    from hpcgemma.cli import console

    if as_json:
        console.result_json(
            {
                "name": plan.run_name,
                "strategy": plan.strategy,
                "strategy_reason": plan.strategy_reason,
                "continue_by": plan.continue_by,
                "continue_reason": choice.reason if choice else None,
                "data": list(data),
                "warnings": [dataclasses.asdict(finding) for finding in findings],
                "notes": [dataclasses.asdict(note) for note in notes],
                "script": script,
            }
        )
        return
    for finding in findings:
        console.say(f"Warning: {finding.problem}\n   Try: {finding.hint}")
    show_notes(notes)
    console.say(f"strategy {plan.strategy}: {plan.strategy_reason}")
    for line in data:
        console.say(line)
    if choice is not None:
        console.say(f"goes on by {plan.continue_by}: {choice.reason}")
    console.result(script)


def show_notes(notes: Sequence[Finding]) -> None:
    """Print what a person should know of a run that is submitted all the same."""
    from hpcgemma.cli import console

    for note in notes:
        console.say(f"Note:  {note.problem}\nTry:   {note.hint}")
