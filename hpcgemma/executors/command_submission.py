"""From a job plan to a job that does one command's work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hpcgemma.errors import HpcGemmaError, InputError, SchedulerError
from hpcgemma.executors import worker_command
from hpcgemma.executors.exclusion import explained
from hpcgemma.job_plan import JobPlan
from hpcgemma.render import render_command_script
from hpcgemma.runs.command_job import CommandJob, Request, create_job
from hpcgemma.slurm.client import SlurmClient
from hpcgemma.slurm.refusals import SubmitRefused, SubmitTimeout

Runner = Callable[[str], None]
"""What the job calls: it takes the path of the job's folder, and is importable by name on the nodes."""


def preview_command(plan: JobPlan, job: CommandJob, exclude: Sequence[str] = ()) -> str:
    """Return exactly the job script that would be submitted."""
    command = worker_command(job.submitit_dir)
    return render_command_script(plan, job_folder=job.path, command=command, exclude=exclude)


def submit_command(
    plan: JobPlan,
    job: CommandJob,
    program: str,
    request: Mapping[str, Any],
    client: SlurmClient,
    runner: Runner,
    exclude: Sequence[str] = (),
) -> str:
    """Create a job's folder, submit it, and return its id.

    Args:
        plan: What is asked for.
        job: Where its files go.
        program: Program of the trainer.
        request: What the program is asked, as JSON has it.
        client: Runs Slurm's commands.
        runner: What the job calls.
        exclude: Nodes that it is not to have.

    Raises:
        InputError: The folder cannot be written.
        SchedulerError: Slurm refused or did not answer; nothing is left behind.
    """
    from hpcgemma.executors.slurm import SlurmExecutor

    def render(command: Sequence[str]) -> str:
        return render_command_script(plan, job_folder=job.path, command=command, exclude=exclude)

    preview_command(plan, job, exclude)  # a value that cannot be written is refused before anything is created
    wanted = Request(program=program, request=request, ranks=plan.ranks_per_node, cpus_per_rank=plan.cpus_per_rank)
    create_job(job, wanted)
    try:
        executor = SlurmExecutor(
            submitit_dir=job.submitit_dir,
            command=worker_command(job.submitit_dir),
            script_file=job.script_file,
            render=render,
            comment=plan.comment,
            known=(),
            client=client,
        )
        return str(executor.submit(runner, str(job.path)).job_id)
    except SubmitTimeout as lost:  # the job may exist, so its folder stays
        raise SchedulerError(
            f"{lost.problem}; its folder is {job.path}",
            f"squeue --me --name {plan.run_name}  shows whether it is there",
        ) from lost
    except SubmitRefused as refused:
        job.discard()
        raise explained(refused, plan.profile, exclude) from refused
    except HpcGemmaError:
        job.discard()
        raise
    except OSError as error:  # sbatch may have answered before the disk refused
        client.cancel(found.job_id for found in client.find_by_comment(plan.comment))
        job.discard()
        raise InputError(
            f"the folder {job.path} cannot be written: {error.strerror}", "free some space, or make it writable"
        ) from error
