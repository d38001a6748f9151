"""From a plan to a job: the run folder, the executor, and the record of what was submitted."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpcgemma import __version__
from hpcgemma.errors import HpcGemmaError, InputError, SchedulerError
from hpcgemma.executors import supervisor_command
from hpcgemma.executors.exclusion import explained
from hpcgemma.findings import Finding
from hpcgemma.plan import Plan
from hpcgemma.profiles import Profile
from hpcgemma.recipes import Recipe
from hpcgemma.recipes.libraries import library_versions
from hpcgemma.render import render_script
from hpcgemma.runs import store
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.lead import lead_of, warning_lead_s
from hpcgemma.runs.measurement import need_of
from hpcgemma.runs.store import RunEntry
from hpcgemma.runs.tracking import link_pickle
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.refusals import SubmitRefused, SubmitTimeout
from hpcgemma.slurm.submission import submit_once

if TYPE_CHECKING:
    import submitit

Supervisor = Callable[[str], str]
"""What the job calls: it takes the run folder's path, and is importable by name on the nodes."""


def preview(plan: Plan, run_folder: Path, exclude: Sequence[str] = ()) -> str:
    """Return exactly what would be submitted: the job script, or the local command line."""
    command = supervisor_command(RunFolder(run_folder))
    if plan.scheduler == "none":
        return shlex.join(command)
    return render_script(plan, run_folder=run_folder, command=command, exclude=exclude)


def submit_new(
    plan: Plan,
    profile: Profile,
    recipe: Recipe,
    runs_dir: Path,
    client: SlurmClient,
    supervisor: Supervisor,
    links: int = 0,
    exclude: Sequence[str] = (),
) -> tuple[RunEntry, str]:
    """Create a run and submit its first job.

    Args:
        plan: What is asked for.
        profile: The profile it was planned with, kept in run.yaml.
        recipe: The recipe it was planned with, kept in run.yaml.
        runs_dir: Where run folders are.
        client: Runs Slurm's commands.
        supervisor: What the job calls with the run folder's path.
        links: Jobs that the run is to have and no more; 0: as many as it takes.
        exclude: Nodes that it is not to have.

    Returns:
        The run, and the job's id.

    Raises:
        InputError: The name is taken or the folder cannot be written.
        SchedulerError: Slurm refused or did not answer; nothing is left behind.
    """
    folder = RunFolder(runs_dir / plan.run_name)
    entry = RunEntry(
        run_id=plan.run_id,
        name=plan.run_name,
        path=str(folder.path),
        profile=plan.profile,
        recipe=plan.recipe,
        scheduler=plan.scheduler,
        created=time.time(),
    )
    preview(plan, folder.path, exclude)  # a value that cannot be written is refused before anything is created
    store.create_run(entry, _run_file(entry, plan, profile, recipe))
    try:
        return entry, submit_again(entry, plan, client, supervisor, links, exclude)
    except SubmitTimeout as lost:
        raise SchedulerError(
            f"{lost.problem}; run {entry.name} is kept in {entry.path}",
            f"hpcgemma status {entry.name}  looks for its job when Slurm answers; then, if there is none: "
            f"hpcgemma resume {entry.name}",
        ) from lost
    except HpcGemmaError:
        store.discard_run(entry)
        raise


def submit_again(
    entry: RunEntry,
    plan: Plan,
    client: SlurmClient,
    supervisor: Supervisor,
    links: int = 0,
    exclude: Sequence[str] = (),
) -> str:
    """Submit a job for a run that has its folder, record it, and return its id.

    When it is warned of its end follows from what the run's saves took, once there are any.

    Args:
        entry: The run.
        plan: What is asked for.
        client: Runs Slurm's commands.
        supervisor: What the job calls with the run folder's path.
        links: Jobs that the run is to have and no more; 0: as many as it takes. `queue_links` submits the others.
        exclude: Nodes that it is not to have.

    Raises:
        SchedulerError: Slurm refused or did not answer.
    """
    folder = entry.folder
    if plan.scheduler == "slurm":
        lead_s = warning_lead_s(need_of(folder), assumed_s=plan.signal_lead_s, walltime_min=plan.walltime_min)
        plan = dataclasses.replace(plan, signal_lead_s=lead_s)
    try:
        job = _executor(plan, folder, client, exclude).submit(supervisor, str(folder.path))
    except SubmitRefused as refused:
        raise explained(refused, plan.profile, exclude) from refused
    except OSError as error:
        if plan.scheduler == "slurm":  # sbatch may have answered before the disk refused
            client.cancel(job.job_id for job in client.find_by_comment(plan.comment))
        raise InputError(
            f"the run folder {folder.path} cannot be written: {error.strerror}", "free some space, or make it writable"
        ) from error
    job_id = str(job.job_id)
    facts = {"links": links} if links else {}
    folder.record("submitted", job_id=job_id, by="launcher", profile=plan.profile, lead_s=plan.signal_lead_s, **facts)
    store.note_job(entry, job_id)
    return job_id


def queue_links(entry: RunEntry, plan: Plan, client: SlurmClient, job_id: str, links: int) -> Finding | None:
    """Queue further jobs behind a run's first one, each to start when all before it have ended, however they did.

    All before, and not only the last: were a waiting link cancelled, the one behind it would start at once.

    Args:
        entry: The run.
        plan: What was asked for.
        client: Runs Slurm's commands.
        job_id: The first job.
        links: Jobs in all, the first one included.

    Returns:
        Why there are fewer than wanted; None where there are all.
    """
    folder, queued = entry.folder, [job_id]
    lead_s = lead_of(folder.events(), job_id, plan.signal_lead_s)
    for number in range(2, links + 1):
        try:
            link = submit_once(
                client,
                folder.script_file,
                comment=plan.comment,
                dependency=f"afterany:{':'.join(queued)}",
                known=store.job_ids(folder),
            )
            link_pickle(folder, folder.submitit_dir / f"{job_id}_submitted.pkl", link)
        except (SchedulerError, OSError) as error:
            problem = error.problem if isinstance(error, SchedulerError) else str(error)
            hint = error.hint if isinstance(error, SchedulerError) else "free some space, or make the folder writable"
            return Finding(f"only {len(queued)} of {links} links are queued: {problem}", hint)
        folder.record("linked", job_id=link, link=number, lead_s=lead_s)
        store.note_job(entry, link)
        queued.append(link)
    return None


def _executor(plan: Plan, folder: RunFolder, client: SlurmClient, exclude: Sequence[str]) -> submitit.Executor:
    from hpcgemma.executors.local import LocalExecutor
    from hpcgemma.executors.slurm import SlurmExecutor

    if plan.scheduler == "none":
        return LocalExecutor(plan, folder)
    return SlurmExecutor(
        submitit_dir=folder.submitit_dir,
        command=supervisor_command(folder),
        script_file=folder.script_file,
        render=lambda command: render_script(plan, run_folder=folder.path, command=command, exclude=exclude),
        comment=plan.comment,
        known=store.job_ids(folder),
        client=client,
    )


def _run_file(entry: RunEntry, plan: Plan, profile: Profile, recipe: Recipe) -> dict[str, Any]:
    return {
        "schema_version": store.SCHEMA_VERSION,
        "run_id": entry.run_id,
        "created": entry.created,
        "submitted_from": str(Path.cwd()),
        "versions": {"hpcgemma": __version__, "libraries": library_versions(recipe)},
        "plan": plan.as_mapping(),
        "recipe": recipe.model_dump(mode="json"),
        "profile": profile.model_dump(mode="json"),
    }
