"""`hpcgemma doctor`: what this machine and this cluster will do to a run, in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hpcgemma.cli import options

if TYPE_CHECKING:
    from hpcgemma.diagnosis import Diagnosis
    from hpcgemma.profiles import Profile, QueueSpec

SCHEDULER_CODE = 3


@click.command()
@click.option(
    "--profile",
    "profile_name",
    metavar="NAME",
    help="Cluster profile: a name or a file. Default: generic_slurm where Slurm is, else local.",
)
@click.option("--partition", metavar="NAME", help="Slurm partition to look at. Default: the profile's.")
@click.option("--qos", metavar="NAME", help="Slurm QOS to look at. Default: the profile's, else your account's.")
@click.option(
    "--runs-dir", metavar="DIR", envvar="HPCGEMMA_RUNS_DIR", help="Folder of run folders. [env: HPCGEMMA_RUNS_DIR]"
)
@options.json_output
def doctor(
    profile_name: str | None, partition: str | None, qos: str | None, runs_dir: str | None, as_json: bool
) -> int:
    """Say what will happen to a job here, how a run goes on, and what is at risk. It changes nothing.

    Exit code 1: work would be lost. 3: Slurm does not answer.

    \b
    hpcgemma doctor
    hpcgemma doctor --profile leonardo --partition boost_usr_prod
    hpcgemma doctor --profile leonardo --qos boost_qos_dbg
    """
    import dataclasses
    import shutil

    from hpcgemma import userconfig
    from hpcgemma.cli import console
    from hpcgemma.destination import ask_destination
    from hpcgemma.diagnosis import diagnose
    from hpcgemma.errors import InputError, SchedulerError
    from hpcgemma.findings import Finding
    from hpcgemma.machine import look_at_machine
    from hpcgemma.profiles import load_profile
    from hpcgemma.runs.measurement import newest_measurement
    from hpcgemma.slurm.client import SlurmClient

    profile = load_profile(profile_name or ("generic_slurm" if shutil.which("scontrol") else "local"))
    if (partition or qos) is not None and profile.scheduler != "slurm":
        raise InputError(
            f"profile {profile.name!r} has no partitions and no QOS",
            "leave --partition and --qos out, or name a profile of a cluster",
        )
    config = userconfig.load_user_config()
    account = userconfig.resolve_account(None, profile, config)
    machine = look_at_machine(userconfig.resolve_runs_dir(runs_dir, profile, config, account))
    destination, silence = None, None
    if profile.scheduler == "slurm":
        queue = _queue_of(profile, partition)
        wanted = (partition or queue.partition, qos or queue.qos)
        try:
            destination = ask_destination(SlurmClient(), *wanted, account)
        except SchedulerError as error:
            silence = Finding(error.problem, error.hint)
    diagnosis = diagnose(profile, machine, destination, newest_measurement(profile.name), silence=silence)
    if as_json:
        facts = {} if destination is None else dataclasses.asdict(destination)
        console.result_json(as_mapping(profile.name, diagnosis) | facts)
    else:
        show(diagnosis)
    if silence:
        return SCHEDULER_CODE
    return 1 if diagnosis.loses_work else 0


def _queue_of(profile: Profile, partition: str | None) -> QueueSpec:
    """Return the queue of a partition, else the default one, whose QOS counts there as well."""
    queues = sorted(profile.queues, key=lambda each: not each.default)
    return next((each for each in queues if each.partition == partition), queues[0])


def as_mapping(profile: str, diagnosis: Diagnosis) -> dict[str, object]:
    """Return a diagnosis as plain values. These names are what scripts rely on."""
    import dataclasses

    return {
        "profile": profile,
        "way": diagnosis.choice.way if diagnosis.choice else None,
        "reason": diagnosis.choice.reason if diagnosis.choice else None,
        "loses_work": diagnosis.loses_work,
        "risks": [dataclasses.asdict(risk) for risk in diagnosis.risks],
        "sections": {section.title: [list(line) for line in section.lines] for section in diagnosis.sections},
    }


def show(diagnosis: Diagnosis) -> None:
    """Print a diagnosis."""
    from hpcgemma.cli import console

    width = max(len(label) for section in diagnosis.sections for label, _ in section.lines)
    for section in diagnosis.sections:
        console.result(click.style(section.title, bold=True))
        for label, text in section.lines:
            console.result(f"  {label:<{width}}  {text}")
        console.result("")
    if not diagnosis.risks:
        console.result("Nothing was found that would lose work.")
    for risk in diagnosis.risks:
        console.result(f"{'Risk' if risk.loses_work else 'Note'}:  {risk.problem}\nTry:   {risk.hint}")
