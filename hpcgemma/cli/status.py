"""`hpcgemma status`: where runs stand, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hpcgemma.cli import options

if TYPE_CHECKING:
    from hpcgemma.slurm.client import SlurmClient

_SHOWN = 20


@click.command()
@options.run_argument
@click.option("--all", "show_all", is_flag=True, help=f"Show every run, not only the newest {_SHOWN}.")
@options.json_output
def status(run: str | None, show_all: bool, as_json: bool) -> None:
    """Show where runs stand, and why: all of mine, or one by name, job id or folder.

    \b
    hpcgemma status
    hpcgemma status 2584773
    """
    from hpcgemma.cli import choosing, console, describe
    from hpcgemma.runs import store, tracking
    from hpcgemma.runs.facts import as_mapping
    from hpcgemma.slurm.client import SlurmClient

    client = SlurmClient()
    if run is not None:
        entry = choosing.find_run(run)
        if entry is None:
            _show_foreign_job(run, client, as_json)
            return
        state = tracking.track([entry], client)[0]
        if tracking.end_requeue_wait(entry, state, client):
            console.say(f"job {state.job_id} was waiting after its requeue; asked Slurm to start it now")
        if as_json:
            console.result_json(as_mapping(entry, state))
        else:
            describe.show_one(entry, state)
        return

    entries = store.all_runs()
    shown = entries if show_all else entries[:_SHOWN]
    states = tracking.track(shown, client)
    for entry, state in zip(shown, states, strict=True):
        tracking.end_requeue_wait(entry, state, client)
    if as_json:
        pairs = zip(shown, states, strict=True)
        console.result_json([as_mapping(entry, state, with_time=False) for entry, state in pairs])
    elif not shown:
        console.say("no runs yet; try: hpcgemma submit --profile local --recipe svg_captions_tiny --wait")
    else:
        rows = [describe.table_row(entry, state) for entry, state in zip(shown, states, strict=True)]
        console.table(describe.TABLE_COLUMNS, rows)
        if len(entries) > len(shown):
            console.say(f"and {len(entries) - len(shown)} older ones: hpcgemma status --all")


def _show_foreign_job(word: str, client: SlurmClient, as_json: bool) -> None:
    """Show a Slurm job that is no run's."""
    import dataclasses

    from hpcgemma.cli import console
    from hpcgemma.errors import InputError
    from hpcgemma.slurm import reasons
    from hpcgemma.slurm.commands import is_job_id

    if not is_job_id(word):
        raise InputError(f"no run of hpcgemma is called {word!r}", "hpcgemma status  lists all runs")
    job = client.jobs([word]).get(word)
    if job is None:
        raise InputError(
            f"neither hpcgemma nor Slurm knows a job {word}",
            "hpcgemma status  lists all runs; squeue --me your jobs",
        )
    if as_json:
        console.result_json(dataclasses.asdict(job))
        return
    pending = reasons.is_pending(job.state)
    whose = "of one command, and no run's" if job.comment.startswith("hpcgemma:") else "not submitted by hpcgemma"
    explained = reasons.explain_reason(job.reason) if pending else reasons.explain_state(job.state)
    console.facts(
        [
            ("job", f"{job.job_id}  {job.name}  ({whose})"),
            (
                "state",
                f"{job.state}: {job.reason + ': ' if pending and job.reason else ''}{explained.sentence}",
            ),
            ("try", explained.remedy),
            ("nodes", job.node_list),
            ("partition", job.partition),
            ("account", job.account),
            ("folder", job.work_dir),
        ]
    )
