"""`hpcgemma drill`: a real run that is warned, ended and killed on purpose, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hpcgemma.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hpcgemma.drill.acts import Act
    from hpcgemma.drill.training import On
    from hpcgemma.plan import Plan

_ACTS = (
    "warned",
    "ranks-killed",
    "requeued",
    "time-limit",
    "stopped",
    "job-killed",
    "terminated",
    "killed",
)  # hpcgemma.drill.acts.NAMES, which --help need not load


@click.command()
@click.option("--profile", "profile_name", required=True, metavar="NAME", help="Cluster profile: a name or a file.")
@click.option(
    "--act",
    "wanted",
    type=click.Choice(_ACTS),
    multiple=True,
    help="Do only this; repeatable. terminated: requeued, time-limit and stopped; killed: ranks-killed and job-killed. "
    "Default: all that the profile has.",
)
@click.option(
    "--on",
    type=click.Choice(["auto", "cpu", "gpu"]),
    default="auto",
    show_default=True,
    help="cpu: without a GPU; gpu: one GPU of each node; auto: without, where the profile names a place for that.",
)
@click.option("--partition", metavar="NAME", help="Slurm partition to drill in. Default: the profile's.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True, help="Nodes of the job.")
@options.settings
@click.option("--name", metavar="NAME", help="Name of the run. Default: drill, with a number.")
@click.option("--account", metavar="NAME", envvar="HPCGEMMA_ACCOUNT", help="Account that pays. [env: HPCGEMMA_ACCOUNT]")
@click.option(
    "--time", "walltime", metavar="HH:MM:SS", help="Time limit of each of its jobs. Default: 20 minutes; none here."
)
@click.option(
    "--runs-dir", metavar="DIR", envvar="HPCGEMMA_RUNS_DIR", help="Folder of run folders. [env: HPCGEMMA_RUNS_DIR]"
)
@options.dry_run
@options.json_output
def drill(
    profile_name: str,
    wanted: tuple[str, ...],
    on: On,
    partition: str | None,
    nodes: int,
    settings: tuple[str, ...],
    name: str | None,
    account: str | None,
    walltime: str | None,
    runs_dir: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Train something tiny for some minutes, warn, end and kill it, and report what became of it.

    It needs no GPU where the profile names a place without. Ctrl-C cancels the run and reports what was seen so far.
    Exit code 1: something was not as promised. 3: Slurm does not answer.

    \b
    hpcgemma drill --profile local
    hpcgemma drill --profile leonardo --account NAME
    hpcgemma drill --profile leonardo --account NAME --on gpu --act terminated
    """
    import dataclasses
    from pathlib import Path

    from hpcgemma import hub, preflight, userconfig
    from hpcgemma.cli import chain, console, rehearsing
    from hpcgemma.cli.submit import show_notes, show_preview
    from hpcgemma.destination import ask_destination
    from hpcgemma.drill import training
    from hpcgemma.drill.acts import acts_of
    from hpcgemma.drill.report import Prediction
    from hpcgemma.errors import HpcGemmaError
    from hpcgemma.executors import submission
    from hpcgemma.findings import refuse
    from hpcgemma.plan import make_plan
    from hpcgemma.profiles import load_profile
    from hpcgemma.recipes import load_recipe
    from hpcgemma.recipes.paths import with_absolute_paths
    from hpcgemma.runs import store
    from hpcgemma.slurm.client import SlurmClient
    from hpcgemma.strategy import with_strategy
    from hpcgemma.supervise.supervisor import supervise

    place = training.place_of(load_profile(profile_name), on, partition)
    profile = place.profile
    acts = acts_of(profile.scheduler, wanted)
    given = [*training.settings_of(acts, ranks=place.ranks, nodes=nodes), *settings]
    recipe = with_absolute_paths(load_recipe(training.RECIPE, given), Path.cwd())
    config = userconfig.load_user_config()
    account = userconfig.resolve_account(account, profile, config)
    folder_of_runs = userconfig.resolve_runs_dir(runs_dir, profile, config, account)
    on_slurm = profile.scheduler == "slurm"
    model_config = hub.model_config(recipe)
    plan = make_plan(
        profile,
        recipe,
        run_name=name or store.free_name(folder_of_runs, training.NAME),
        run_id=store.new_run_id(),
        account=account,
        walltime=walltime or (training.WALLTIME if on_slurm else None),
        model_config=model_config,
    )
    recipe = with_strategy(recipe, plan.strategy)
    client = SlurmClient()
    findings = preflight.check_recipe(plan, recipe, model_config)
    show_acts(plan, place.sentence, acts)
    if dry_run:
        script = submission.preview(plan, folder_of_runs / plan.run_name)
        show_preview(plan, script, findings, [], [], as_json=as_json)
        return 0
    prediction = Prediction(scheduler=plan.scheduler, signal=plan.signal, lead_s=plan.signal_lead_s)
    if on_slurm:
        findings += preflight.check_partition(plan, client)
        refuse(findings)
        plan, choice, cautions = chain.going_on(plan, profile, client)
        show_notes(cautions)
        try:
            destination = ask_destination(client, plan.partition, plan.qos, plan.account)
        except HpcGemmaError:
            destination = None
        prediction = dataclasses.replace(prediction, destination=destination, choice=choice)
    refuse(findings)

    entry, job_id = submission.submit_new(plan, profile, recipe, folder_of_runs, client, supervise)
    console.say(f"submitted run {entry.name} as job {job_id}; folder {entry.path}")
    interval = recipe.checkpoint.every_steps
    return rehearsing.rehearse(
        entry,
        plan,
        client,
        acts,
        prediction,
        place=place.sentence,
        interval=interval if isinstance(interval, int) else training.INTERVAL,
        as_json=as_json,
    )


def show_acts(plan: Plan, sentence: str, acts: Sequence[Act]) -> None:
    """Say what will be done, and where."""
    from hpcgemma.cli import console

    size = f"{plan.nodes} node{'s' * (plan.nodes > 1)} of {plan.ranks_per_node} rank{'s' * (plan.ranks_per_node > 1)}"
    where = f", partition {plan.partition}" if plan.partition else ""
    limit = f"; at most {plan.walltime_min} min a job" if plan.scheduler == "slurm" else ""
    console.say(f"a drill of {size} {sentence}{where}{limit}")
    for number, act in enumerate(acts, start=1):
        console.say(f"  act {number} of {len(acts)}, {act.value}: {act.intent}")
