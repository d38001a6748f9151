"""`hpcgemma drill`: a real run that is warned, ended and killed on purpose, and what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from hpcgemma.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hpcgemma.drill.acts import Act
    from hpcgemma.drill.rehearsal import Rehearsal
    from hpcgemma.drill.report import Prediction, Report
    from hpcgemma.drill.training import On
    from hpcgemma.plan import Plan
    from hpcgemma.runs.store import RunEntry
    from hpcgemma.slurm.client import SlurmClient

INTERRUPTED_CODE = 130
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
    from hpcgemma.cli import chain, console
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
            destination = ask_destination(client, plan.partition, plan.qos)
        except HpcGemmaError:
            destination = None
        prediction = dataclasses.replace(prediction, destination=destination, choice=choice)
    refuse(findings)

    entry, job_id = submission.submit_new(plan, profile, recipe, folder_of_runs, client, supervise)
    console.say(f"submitted run {entry.name} as job {job_id}; folder {entry.path}")
    return _rehearse(entry, plan, client, acts, prediction, place.sentence, recipe.checkpoint.every_steps, as_json)


def show_acts(plan: Plan, sentence: str, acts: Sequence[Act]) -> None:
    """Say what will be done, and where."""
    from hpcgemma.cli import console

    size = f"{plan.nodes} node{'s' * (plan.nodes > 1)} of {plan.ranks_per_node} rank{'s' * (plan.ranks_per_node > 1)}"
    where = f", partition {plan.partition}" if plan.partition else ""
    limit = f"; at most {plan.walltime_min} min a job" if plan.scheduler == "slurm" else ""
    console.say(f"a drill of {size} {sentence}{where}{limit}")
    for number, act in enumerate(acts, start=1):
        console.say(f"  act {number} of {len(acts)}, {act.value}: {act.intent}")


def _rehearse(
    entry: RunEntry,
    plan: Plan,
    client: SlurmClient,
    acts: Sequence[Act],
    prediction: Prediction,
    place: str,
    interval: Any,
    as_json: bool,
) -> int:
    """Go through the acts with a line that says where they stand, report, and return the exit code."""
    from hpcgemma.cli import console, describe
    from hpcgemma.drill import training
    from hpcgemma.drill.rehearsal import Rehearsal
    from hpcgemma.drill.stage import LocalStage, SlurmStage
    from hpcgemma.errors import HpcGemmaError
    from hpcgemma.runs.progress import read_progress

    interval = interval if isinstance(interval, int) else training.INTERVAL
    stage = SlurmStage(plan, client) if plan.scheduler == "slurm" else LocalStage(plan)
    with console.progress() as line:

        def show(words: str) -> None:
            figures = read_progress(entry.folder)
            if figures is None or not figures.total_steps:
                line.show(words)
            else:
                line.show(words, figures.step, figures.total_steps, describe.figures(figures))

        rehearsal = Rehearsal(entry, plan, client, stage, interval=interval, show=show)
        code, trouble = 0, None
        try:
            _end_as_by_ctrl_c()
            rehearsal.run(acts)
        except KeyboardInterrupt:
            code = INTERRUPTED_CODE
        except HpcGemmaError as error:
            code, trouble = error.exit_code, error
    if code:
        _abandon(rehearsal, entry)
    report = _report(rehearsal, entry, acts, prediction, place, interval)
    _keep_and_show(report, entry, as_json)
    if trouble is not None:
        raise trouble
    return code or int(report.has_failed)


def _end_as_by_ctrl_c() -> None:
    """Let a terminal that closes, and a kill, end the drill as Ctrl-C does: the run is cancelled, not left behind."""
    import signal

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one of them
            signal.signal(number, signal.default_int_handler)


def _abandon(rehearsal: Rehearsal, entry: RunEntry) -> None:
    from hpcgemma.cli import console
    from hpcgemma.errors import SchedulerError

    try:
        rehearsal.abandon()
        console.say(f"\nrun {entry.name} is cancelled: it saves and ends")
    except SchedulerError as error:
        console.say(f"\nrun {entry.name} could not be cancelled: {error.problem}; later: hpcgemma cancel {entry.name}")


def _report(
    rehearsal: Rehearsal, entry: RunEntry, acts: Sequence[Act], prediction: Prediction, place: str, interval: int
) -> Report:
    import dataclasses

    from hpcgemma.drill.outcome import outcome_of
    from hpcgemma.drill.report import Report, remarks_on
    from hpcgemma.files import read_json_lines
    from hpcgemma.runs.lead import lead_of

    events, metrics = entry.folder.events(), list(read_json_lines(entry.folder.metrics_file))
    deeds = rehearsal.deeds
    ends = [*(deed.at for deed in deeds[1:]), None]
    outcomes = tuple(
        outcome_of(deed, events, metrics, interval=interval, until=end)
        for deed, end in zip(deeds, ends[-len(deeds) :], strict=True)
    )
    limited = next((deed.job_id for deed in deeds if deed.limit_at is not None), None)
    if limited is not None:
        prediction = dataclasses.replace(prediction, lead_s=lead_of(events, limited, prediction.lead_s))
    return Report(
        run=entry.name,
        folder=entry.path,
        profile=entry.profile,
        place=place,
        interval=interval,
        planned=tuple(acts),
        outcomes=outcomes,
        remarks=remarks_on(outcomes, prediction),
        end=rehearsal.end,
    )


def _keep_and_show(report: Report, entry: RunEntry, as_json: bool) -> None:
    """Print the report, and keep it in the run folder in both forms."""
    import json

    from hpcgemma import files
    from hpcgemma.cli import console
    from hpcgemma.drill.report import COLUMNS, lines_of, rows

    text = "\n".join([console.table_text(COLUMNS, rows(report.outcomes)), *lines_of(report)]) + "\n"
    try:
        files.write_atomically(entry.folder.drill_file, json.dumps(report.as_mapping(), indent=2) + "\n")
        files.write_atomically(entry.folder.drill_text_file, text)
    except OSError as error:
        console.say(f"the report could not be kept in {entry.path}: {error.strerror}")
    if as_json:
        console.result_json(report.as_mapping())
        return
    console.table(COLUMNS, rows(report.outcomes))
    for line in lines_of(report):
        console.result(line)
    console.say(f"kept in {entry.folder.drill_text_file} and {entry.folder.drill_file.name}")
