"""`hpcgemma cancel`: end a run for good."""

from __future__ import annotations

import click

from hpcgemma.cli import options


@click.command()
@click.argument("run", metavar="RUN")
@options.dry_run
def cancel(run: str, dry_run: bool) -> None:
    """End a run, by name, job id or folder; its ranks save first, and it does not come back by itself.

    \b
    hpcgemma cancel gemma2_9b_lora-3
    """
    from hpcgemma.cli import choosing, console
    from hpcgemma.errors import InputError
    from hpcgemma.executors import ending
    from hpcgemma.runs import tracking
    from hpcgemma.slurm.client import SlurmClient
    from hpcgemma.slurm.commands import is_job_id

    client = SlurmClient()
    entry = choosing.find_run(run)
    if entry is None and is_job_id(run):
        raise InputError(f"job {run} was not submitted by hpcgemma", f"scancel {run}  if it is yours to end")
    entry = entry or choosing.require_run(run)
    state = tracking.track([entry], client)[0]
    if state.status.is_final:
        console.say(f"run {entry.name} is over already: {state.status.value}, {state.sentence}")
        return
    if dry_run:
        console.say(f"run {entry.name}, job {state.job_id}, would be cancelled")
        return
    ending.cancel_run(entry, client)
    console.say(f"run {entry.name} is ending; to go on with it later: hpcgemma resume {entry.name}")
