"""`hpcgemma doctor` says what a site does to a job, and what is at risk there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hpcgemma.cli.doctor import show
from hpcgemma.destination import Destination
from hpcgemma.diagnosis import Diagnosis, diagnose
from hpcgemma.findings import Finding
from hpcgemma.machine import FileSystem, Machine, look_at_machine
from hpcgemma.profiles import load_profile
from hpcgemma.runs.lead import SaveNeed
from hpcgemma.runs.measurement import Measurement
from tests.scenario import Terminal
from tests.sites import destination, qos_destination, recorded_qos, recorded_site

MACHINE = Machine(
    python="3.11.2",
    missing_packages=(),
    missing_commands=(),
    hub_cache=Path("/cache/hub"),
    cached_models=2,
    runs=FileSystem(folder=Path("/scratch"), has_links=True, has_locks=False, free_gib=1234.5),
)
GRACEFUL = """\
this machine
  Python         3.11.2
  packages       all of the trainer's
  Slurm          all of its commands are here
  models         2 in /cache/hub
  runs           /scratch can be written, 1,234 GiB are free, hard links work, file locks do not work

the cluster
  Slurm          22.05.8
  partition      boost_usr_prod, at most 1-00:00:00
  requeues jobs  yes (JobRequeue=1)
  accounting     ended jobs stay known
  processes      tracked by linuxproc

what happens to a job
  preemption     Jobs of partition urgent may take its nodes. Each rank gets SIGTERM, the batch host nothing, and \
after 30 s all is ended. Slurm then requeues the job.
                 The ranks save, and a successor goes on; one that is killed before is requeued, to its last checkpoint.
  time limit     A job here ends after 1-00:00:00 at the latest. The batch host gets SIGUSR2 300 s before its own \
limit, up to 60 s early; at the limit SIGTERM goes to all, and 5 s later SIGKILL.
                 The ranks save at the warning, and a successor goes on, warned as early as the saves so far need.
  lost node      Nobody is warned. After 20 s of silence Slurm ends the job and requeues it.
                 The run goes on from its last checkpoint by itself.
  scancel        SIGTERM goes to all processes, and 5 s later SIGKILL.
                 What is saved by then is kept, and the run ends: it comes back by hpcgemma resume alone.

how a run goes on
  way            successor: it starts a second after its nodes are free; a requeued job waits 7 s
  warning        73 s before the time limit, were it run captions-1, which needs 13 s to save

Nothing was found that would lose work.
"""
HARSH = """\
this machine
  Python         3.11.2
  packages       all of the trainer's
  Slurm          all of its commands are here
  models         2 in /cache/hub
  runs           /scratch can be written, 1,234 GiB are free, hard links work, file locks do not work

the cluster
  Slurm          22.05.8
  partition      spot, no time limit
  requeues jobs  only those that ask for it (JobRequeue=0)
  accounting     ended jobs stay known
  processes      tracked by linuxproc

what happens to a job
  preemption     Jobs of partition urgent may take its nodes. There is no grace: SIGTERM goes to all processes at \
once, and 5 s later SIGKILL. Slurm then cancels the job, and does not requeue it.
                 The ranks save, and the job is requeued and goes on.
  time limit     A job here has no time limit. The batch host gets SIGUSR2 300 s before its own limit, up to 60 s \
early; at the limit SIGTERM goes to all, and 5 s later SIGKILL.
                 The ranks save at the warning, and the job is requeued and goes on.
  lost node      Nobody is warned. After 20 s of silence Slurm ends the job and does not requeue it (JobRequeue=0).
                 The run stands still until hpcgemma resume, which goes on from its last checkpoint.
  scancel        SIGTERM goes to all processes, and 5 s later SIGKILL.
                 What is saved by then is kept, and the run ends: it comes back by hpcgemma resume alone.

how a run goes on
  way            requeue: the profile says so (continuation.mode: requeue)
  warning        73 s before the time limit, were it run captions-1, which needs 13 s to save

Risk:  a preempted job of partition 'spot' is cancelled without grace, and a requeue may come too late
Try:   submit a chain ahead: continuation.mode: auto or chain in the profile, or --links 4
Risk:  Slurm does not requeue a job here whose node is lost: the run stands still until a person looks
Try:   submit a chain ahead: continuation.mode: auto or chain in the profile, or --links 4
Risk:  partition 'spot' gives a preempted job 5 s, and run captions-1 needs 13 s to save (its slowest save took 12.0 \
s, a step up to 0.5 s): preempted, it loses all since its last checkpoint
Try:   save more often (--set checkpoint.every_steps=auto, or fewer steps), or choose a partition with more grace
"""
SLOW = Measurement(run="captions-1", need=SaveNeed(slowest_save_s=12.0, step_s=0.5))


def diagnosis_at(
    there: Destination | None, *settings: str, silence: Finding | None = None, machine: Machine = MACHINE
) -> Diagnosis:
    return diagnose(load_profile("generic_slurm", settings), machine, there, SLOW, silence=silence)


def test_a_site_that_warns_and_requeues_loses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    found = diagnosis_at(destination("boost_usr_prod"))
    show(found)
    assert capsys.readouterr().out == GRACEFUL
    assert not found.loses_work


def test_a_site_that_cancels_without_grace_is_a_risk_for_who_insists_on_requeue(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = diagnosis_at(destination("spot", recorded_site(JobRequeue="0")), "continuation.mode=requeue")
    show(found)
    assert capsys.readouterr().out == HARSH
    assert found.loses_work


def test_a_chain_answers_a_site_that_cancels_and_does_not_requeue() -> None:
    found = diagnosis_at(destination("spot", recorded_site(JobRequeue="0")))
    assert found.choice is not None
    assert found.choice.way == "chain"
    assert [risk.problem.partition(",")[0] for risk in found.risks] == ["partition 'spot' gives a preempted job 5 s"]


def test_a_chain_that_cannot_be_made_from_inside_is_a_risk() -> None:
    there = destination("boost_usr_prod", recorded_site(JobRequeue="0"), AllocNodes="login1")
    found = diagnosis_at(there)
    assert [(risk.problem, risk.hint) for risk in found.risks] == [
        (
            "no job may be submitted from a compute node here (AllocNodes), so none can be queued ahead from inside",
            "queue them from here: hpcgemma submit … --links 4",
        )
    ]


AHEAD = "submit a chain ahead: continuation.mode: auto or chain in the profile, or --links 4"
SEE_QOS = "see what 'sacctmgr show qos' says of PreemptMode and GraceTime"
SEE_PARTITION = "see what 'scontrol show partition' says of PreemptMode and GraceTime"


@pytest.mark.parametrize(
    ("there", "settings", "problem", "hint"),
    [
        (qos_destination(None), (), "the job's QOS", SEE_QOS),
        (
            qos_destination(None),
            ("continuation.mode=successor",),
            "the job's QOS",
            f"{SEE_QOS}; until then {AHEAD}",
        ),
        (destination("spot", PreemptMode="NEW"), (), "partition 'spot'", SEE_PARTITION),
    ],
)
def test_what_is_not_known_of_preemption_is_a_risk_but_for_a_chain(
    there: Destination, settings: tuple[str, ...], problem: str, hint: str
) -> None:
    found = diagnose(load_profile("generic_slurm", settings), MACHINE, there, None)
    assert [(risk.problem, risk.hint, risk.loses_work) for risk in found.risks] == [
        (f"what becomes of a preempted job of {problem} is not known", hint, bool(settings))
    ]
    assert found.choice is not None
    assert found.choice.way == ("successor" if settings else "chain")


def test_a_grace_that_is_not_known_is_not_told_as_none() -> None:
    known = [replace(each, grace_s=None) for each in recorded_qos()]
    found = diagnosis_at(qos_destination("spare", known=known), "continuation.mode=successor")
    assert [(risk.problem, risk.loses_work) for risk in found.risks] == [
        (
            "a preempted job of QOS 'spare' is cancelled with a grace that is not known, and a successor may come too "
            "late",
            True,
        )
    ]
    assert found.sections[1].lines[2] == ("QOS", "spare")


def test_a_grace_of_a_qos_too_short_for_a_save_is_said_of_the_qos() -> None:
    known = [replace(each, grace_s=3) for each in recorded_qos()]
    [risk] = diagnosis_at(qos_destination("scavenger", known=known)).risks
    assert risk.problem.startswith("QOS 'scavenger' gives a preempted job 3 s, and run captions-1 needs 13 s to save")
    assert risk.hint.endswith("or choose a QOS with more grace")


def test_where_slurm_is_silent_the_machine_is_told_all_the_same() -> None:
    silence = Finding("Slurm's command 'scontrol' was not found on this machine", "run on a login node")
    found = diagnosis_at(None, silence=silence)
    assert [section.title for section in found.sections] == ["this machine", "the cluster", "how a run goes on"]
    assert found.sections[1].lines == (("Slurm", "It did not answer: what it does to a job is not known."),)
    assert [(risk.problem, risk.hint) for risk in found.risks] == [(silence.problem, silence.hint)]


def test_what_this_machine_lacks_is_said_with_what_to_do() -> None:
    runs = replace(MACHINE.runs, has_links=False, free_gib=3.25)
    machine = replace(MACHINE, missing_packages=("torch", "peft"), runs=runs)
    found = diagnosis_at(destination("urgent"), machine=machine)
    assert [(risk.problem, risk.loses_work) for risk in found.risks] == [
        ("the trainer's packages are not installed beside hpcgemma: torch, peft", False),
        ("/scratch has no hard links, on which rests that one job at a time works on a run", True),
        ("/scratch has 3.2 GiB left; a save that does not fit is skipped", False),
    ]


def test_looking_at_a_file_system_leaves_nothing_there(tmp_path: Path) -> None:
    runs = look_at_machine(tmp_path / "not" / "yet").runs
    assert (runs.folder, runs.problem, runs.has_links, runs.has_locks) == (tmp_path, "", True, True)
    assert list(tmp_path.iterdir()) == []


def test_the_local_profile_is_told_without_a_scheduler(terminal: Terminal) -> None:
    said = terminal.call("doctor", "--profile", "local").stdout
    assert "what a run here survives" in said
    assert "Slurm" not in said
    facts = terminal.json("doctor", "--profile", "local")
    assert (facts["profile"], facts["way"]) == ("local", None)


def test_without_slurm_the_exit_code_is_the_schedulers(terminal: Terminal, tmp_path: Path) -> None:
    bare = Terminal(terminal.folder, {**terminal.environment, "PATH": str(tmp_path)})
    said = bare.call("doctor", "--profile", "leonardo", code=3).stdout
    assert "Note:  Slurm's command 'scontrol' was not found on this machine\n" in said
