"""`hpcgemma resume`: go on with a run that does not go on by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hpcgemma.cli import options

if TYPE_CHECKING:
    from hpcgemma.findings import Finding


@click.command()
@options.run_argument
@options.settings
@options.allow_change
@options.walltime
@options.links
@options.dry_run
@options.wait
@options.json_output
def resume(
    run: str | None,
    settings: tuple[str, ...],
    allowed: tuple[str, ...],
    walltime: str | None,
    links: int | None,
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Go on with a run from its newest checkpoint: the newest unfinished one, or one by name, job id or folder.

    \b
    hpcgemma resume
    hpcgemma resume gemma2_9b_lora-3
    hpcgemma resume gemma2_9b_lora-3 --links 4
    hpcgemma resume gemma2_9b_lora-3 --set resources.gpus_per_node=4
    hpcgemma resume gemma2_9b_lora-3 --allow-change libraries
    """
    from hpcgemma import checkpoints
    from hpcgemma.cli import chain, changing, choosing, console, differences, waiting
    from hpcgemma.cli.submit import show_notes
    from hpcgemma.errors import HpcGemmaError, InputError, SchedulerError
    from hpcgemma.executors import submission
    from hpcgemma.executors.exclusion import exclusion_for
    from hpcgemma.plan import Plan
    from hpcgemma.profiles import Profile
    from hpcgemma.runs import store, tracking
    from hpcgemma.runs.measurement import need_of
    from hpcgemma.runs.state import RunStatus
    from hpcgemma.slurm.client import PATIENCE_S, SlurmClient
    from hpcgemma.supervise.supervisor import supervise

    client = SlurmClient(patience_s=PATIENCE_S, on_silence=console.say)
    if run is not None:
        entry = choosing.require_run(run)
    else:
        entries = store.all_runs()
        pairs = list(zip(entries, tracking.track(entries, client), strict=True))
        unfinished = [pair for pair in pairs if pair[1].status is not RunStatus.COMPLETED]
        if not unfinished:
            raise InputError("there is no unfinished run", "hpcgemma status  lists all runs")
        stopped = [pair for pair in unfinished if not pair[1].status.is_active]
        entry = (stopped or unfinished)[0][0]
    content = store.read_run_file(entry.folder)
    try:
        plan = Plan.from_mapping(content["plan"])
    except HpcGemmaError as error:
        own = differences.own_command(entry.folder, "resume", entry.name)
        raise InputError(error.problem, f"use the run's own copy of hpcgemma: {own}") from error
    notes: list[Finding] = []
    profile = Profile.model_validate(content["profile"])
    chain.require_queue(links, profile)
    is_changed = bool(settings or walltime is not None or allowed)
    if settings or walltime is not None:
        content, plan, notes = changing.changed(entry, content, settings, walltime, client, allowed)

    with store.sole_submitter(entry):
        state = tracking.track([entry], client)[0]
        if state.status is RunStatus.COMPLETED:
            raise InputError(f"run {entry.name} is finished", f"its result is {entry.folder.final_dir}")
        if state.status is RunStatus.UNKNOWN:
            raise SchedulerError(
                f"whether run {entry.name} is still alive is not known: {state.sentence}", "ask again later"
            )
        found = checkpoints.find_checkpoints(entry.folder.checkpoints_dir)
        origin = (
            f"from its checkpoint at step {found[-1].step}" if found else "from the start: it has no checkpoint yet"
        )
        job_id = state.job_id
        if state.status.is_active and (is_changed or links):
            raise InputError(
                f"run {entry.name} is {state.status.value} as job {job_id}; it is changed only while no job has it",
                f"hpcgemma cancel {entry.name}, which saves first; then this command again",
            )
        if state.status.is_active:
            hastened = tracking.end_requeue_wait(entry, state, client)
            what = "asked Slurm to start it now" if hastened else "it goes on by itself"
            console.say(f"run {entry.name} is {state.status.value} as job {job_id}: {what}")
        else:
            show_notes(notes)
            differences.show_and_check(entry, content, found[-1] if found else None, allowed)
            if dry_run:
                console.say(f"run {entry.name} would go on {origin}")
                return 0
            is_changed |= differences.renew_code(entry, content, allowed)
            if is_changed:
                content = differences.with_allowance(content, found[-1] if found else None, allowed)
                store.rewrite_run_file(entry.folder, content)
                entry.folder.record("changed", settings=list(settings), walltime=walltime, allowed=list(allowed))
            if plan.scheduler == "slurm":
                _, _, cautions = chain.going_on(plan, profile, client, need_of(entry.folder))
                show_notes(cautions)
            exclusion = exclusion_for(plan, client)
            show_notes(exclusion.notes)
            job_id = submission.submit_again(entry, plan, client, supervise, links or 0, exclusion.nodes)
            show_notes(chain.queue(entry, plan, client, job_id, links))
            console.say(f"run {entry.name} goes on as job {job_id} {origin}")
            if links:
                console.say(chain.describe(entry))
    if wait:
        return waiting.wait_for(entry, client, plan.poll_interval_s, as_json=as_json)
    if as_json:
        said = {"name": entry.name, "run_id": entry.run_id, "job_id": job_id, "links": links, "folder": entry.path}
        console.result_json(said)
    return 0
