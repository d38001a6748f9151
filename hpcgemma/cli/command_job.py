"""Submitting a job that does one command's work, and saying so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcgemma.findings import Finding
    from hpcgemma.job_plan import JobPlan
    from hpcgemma.runs.command_job import CommandJob


def submit(
    plan: JobPlan,
    job: CommandJob,
    program: str,
    request: Mapping[str, Any],
    *,
    purpose: str,
    findings: Sequence[Finding],
    notes: Sequence[str] = (),
    dry_run: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Check and submit a job, or print its script, and return the exit code.

    Args:
        plan: What is asked for.
        job: Where its files go.
        program: Program of the trainer.
        request: What the program is asked, as JSON has it.
        purpose: What the job does, as the end of a sentence.
        findings: What would make it fail.
        notes: What is worth knowing.
        dry_run: Print the script only.
        wait: Stay until the job has ended.
        as_json: Print JSON.

    Raises:
        InputError: It would fail, or the cluster has no place for it.
        SchedulerError: Slurm refused or did not answer.
    """
    from hpcgemma import preflight
    from hpcgemma.cli import command_waiting, console
    from hpcgemma.executors import command_submission
    from hpcgemma.executors.exclusion import exclusion_for
    from hpcgemma.findings import refuse
    from hpcgemma.slurm.client import PATIENCE_S, SlurmClient
    from hpcgemma.supervise.command_job import run_command

    client = SlurmClient(patience_s=PATIENCE_S, on_silence=console.say)
    exclusion = exclusion_for(plan, client)
    notes = [*notes, *(note.problem for note in exclusion.notes)]
    if dry_run:
        script = command_submission.preview_command(plan, job, exclusion.nodes)
        for finding in findings:
            console.say(f"Warning: {finding.problem}\n   Try: {finding.hint}")
        for line in notes:
            console.say(line)
        console.result(script)
        return 0
    refuse([*findings, *preflight.check_partition(plan, client)])

    job_id = command_submission.submit_command(plan, job, program, request, client, run_command, exclusion.nodes)
    said: dict[str, Any] = {
        "name": plan.run_name,
        "job_id": job_id,
        "folder": str(job.path),
        "log": str(job.log_file(job_id)),
        "notes": list(notes),
    }
    if as_json and not wait:
        console.result_json(said)
    elif not as_json:
        console.say(f"submitted job {job_id}, {purpose}")
        for line in notes:
            console.say(line)
        console.say(f"log {said['log']}")
        if not wait:
            console.say(f"look: hpcgemma status {job_id}   end it: scancel {job_id}")
    if not wait:
        return 0
    code = command_waiting.wait_for_job(job, job_id, plan.comment, client, plan.poll_interval_s)
    if as_json:
        console.result_json(said | {"exit_code": code})
    return code
