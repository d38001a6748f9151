"""What Slurm's configuration says is read without loss, and decides how a run goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hpcgemma.destination import Destination
from hpcgemma.fate import Choice, choose_way, fates
from hpcgemma.slurm.qos import Qos
from hpcgemma.slurm.site import Partition, Site, preempt_mode_of, site_of
from tests.sites import destination, qos_destination, recorded_partitions, recorded_qos, recorded_site


def test_the_configuration_of_a_site_is_read() -> None:
    assert recorded_site() == Site(
        cluster="testcluster",
        version="22.05.8",
        job_requeue=True,
        preempt_by="partition",
        preempt_mode="requeue",
        preempts_within=False,
        exempt_s=0,
        kill_wait_s=5,
        slurmd_timeout_s=20,
        min_job_age_s=300,
        sends_user_signal=False,
        proctrack="linuxproc",
        has_accounting=True,
        requeue_wait_s=7,
    )


def test_what_a_site_does_not_say_is_unknown() -> None:
    assert site_of({}) == Site(
        cluster="",
        version="",
        job_requeue=None,
        preempt_by="unknown",
        preempt_mode="unknown",
        preempts_within=False,
        exempt_s=0,
        kill_wait_s=None,
        slurmd_timeout_s=None,
        min_job_age_s=None,
        sends_user_signal=False,
        proctrack="",
        has_accounting=None,
        requeue_wait_s=121,
    )


@pytest.mark.parametrize("key", ["SlurmctldParameters", "PreemptParameters"])
def test_the_user_signal_at_preemption_is_found_in_old_and_new_settings(key: str) -> None:
    word = "preempt_send_user_signal" if key == "SlurmctldParameters" else "send_user_signal"
    assert recorded_site(**{key: f"enable_configless,{word}"}).sends_user_signal


def test_the_partitions_are_read() -> None:
    main = Partition(
        name="boost_usr_prod",
        is_default=True,
        preempt_mode="requeue",
        grace_s=30,
        max_time_min=1440,
        priority_tier=1,
        nodes="node[1-4]",
        takes_jobs_from_nodes=True,
        is_up=True,
    )
    other = replace(main, is_default=False, grace_s=0)
    assert recorded_partitions() == {
        "boost_usr_prod": main,
        "urgent": replace(other, name="urgent", preempt_mode="off", priority_tier=10),
        "spot": replace(other, name="spot", preempt_mode="cancel", max_time_min=None),
    }


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("REQUEUE", "requeue"),
        ("GANG,SUSPEND", "suspend"),
        ("OFF", "off"),
        ("WITHIN,CANCEL", "cancel"),
        ("within", "off"),
        ("NEW", "unknown"),
    ],
)
def test_a_preempt_mode_is_known_whatever_stands_beside_it(text: str, mode: str) -> None:
    assert preempt_mode_of(text) == mode


without_grace = [replace(each, grace_s=None) for each in recorded_qos()]
no_requeue = recorded_site(JobRequeue="0")
CHOICES: list[tuple[str, Any, Destination | None, str]] = [
    ("requeue with grace", "auto", destination("boost_usr_prod"), "successor"),
    ("cancel with grace", "auto", destination("spot", GraceTime="120"), "successor"),
    ("cancel without grace", "auto", destination("spot"), "chain"),
    ("cancel, grace not known", "auto", qos_destination("spare", known=without_grace), "chain"),
    ("by QOS, cancelled with grace", "auto", qos_destination("spare"), "successor"),
    ("by QOS, requeued with grace", "auto", qos_destination("scavenger"), "successor"),
    ("by QOS, nothing preempts", "auto", qos_destination("normal", mode="CANCEL"), "successor"),
    ("by QOS, the accounting is silent", "auto", qos_destination(None), "chain"),
    ("a lost node is not requeued", "auto", destination("boost_usr_prod", no_requeue), "chain"),
    (
        "from 25.11 the job's wish counts",
        "auto",
        destination("boost_usr_prod", recorded_site(JobRequeue="0", SLURM_VERSION="25.11.1")),
        "successor",
    ),
    ("no jobs from nodes", "auto", destination("boost_usr_prod", AllocNodes="login[1-2]"), "requeue"),
    ("nothing preempts", "auto", destination("urgent"), "successor"),
    ("Slurm is silent", "auto", None, "successor"),
    ("the profile decides", "requeue", destination("spot"), "requeue"),
    ("the profile decides without Slurm", "chain", None, "chain"),
]


@pytest.mark.parametrize(("mode", "there", "way"), [each[1:] for each in CHOICES], ids=[each[0] for each in CHOICES])
def test_what_the_site_does_decides_how_a_run_goes_on(mode: Any, there: Destination | None, way: str) -> None:
    known = (None, None, None) if there is None else (there.site, there.partition, there.preemption)
    choice = choose_way(mode, *known)
    assert choice.way == way
    assert choice.reason


def test_an_explicit_mode_says_that_the_profile_decided() -> None:
    there = destination("spot")
    choice = choose_way("requeue", there.site, there.partition, there.preemption)
    assert choice == Choice("requeue", "the profile says so (continuation.mode: requeue)")


PREEMPTED: list[tuple[str, Destination, str]] = [
    (
        "grace",
        destination("boost_usr_prod"),
        "Jobs of partition urgent may take its nodes. Each rank gets SIGTERM, the batch host nothing, and after 30 s "
        "all is ended. Slurm then requeues the job.",
    ),
    (
        "user signal",
        destination(
            "boost_usr_prod", recorded_site(PreemptParameters="send_user_signal", PreemptExemptTime="01:00:00")
        ),
        "Jobs of partition urgent may take its nodes once it has run for 3600 s. The batch host gets SIGUSR2, and "
        "after 30 s all is ended. Slurm then requeues the job.",
    ),
    (
        "no grace",
        destination("spot"),
        "Jobs of partition urgent may take its nodes. There is no grace: SIGTERM goes to all processes at once, and 5 "
        "s later SIGKILL. Slurm then cancels the job, and does not requeue it.",
    ),
    ("never", destination("urgent"), "Nothing preempts jobs of partition 'urgent' (PreemptMode=OFF)."),
    (
        "by QOS",
        qos_destination("scavenger"),
        "Jobs of QOS express may take its nodes. Each rank gets SIGTERM, the batch host nothing, and after 60 s all is "
        "ended. Slurm then requeues the job.",
    ),
    (
        "by QOS, cancelled, with a time of its own in which it is safe",
        qos_destination("spare", PreemptExemptTime="00:01:00"),
        "Jobs of QOS express may take its nodes once it has run for 3600 s. Each rank gets SIGTERM, the batch host "
        "nothing, and after 60 s all is ended. Slurm then cancels the job, and does not requeue it.",
    ),
    (
        "by QOS, the grace not known",
        qos_destination("scavenger", known=without_grace, PreemptExemptTime="00:01:00"),
        "Jobs of QOS express may take its nodes once it has run for 60 s. How long it is warned is not known "
        "(GraceTime of QOS 'scavenger'). Slurm then requeues the job.",
    ),
    (
        "by QOS, suspended, where no time is safe",
        qos_destination(
            "normal",
            "SUSPEND,GANG",
            [*recorded_qos(), Qos(name="boss", preempt_mode=None, grace_s=0, preempts=("normal",))],
            PreemptExemptTime="00:01:00",
        ),
        "Jobs of QOS boss may suspend it, without a warning; it goes on in place when they have ended, or in turns "
        "with them.",
    ),
    (
        "by QOS, the accounting is silent",
        qos_destination(None),
        "The QOS decides here who preempts whom (PreemptType=preempt/qos), and sacctmgr did not tell which QOS the job "
        "gets: by whom a job is preempted, with what grace, and what then becomes of it is not known.",
    ),
    (
        "suspended",
        destination("spot", PreemptMode="SUSPEND"),
        "Jobs of partition urgent may suspend it, without a warning; it goes on in place when they have ended.",
    ),
]


@pytest.mark.parametrize(("there", "sentence"), [each[1:] for each in PREEMPTED], ids=[each[0] for each in PREEMPTED])
def test_preemption_is_told_in_plain_words(there: Destination, sentence: str) -> None:
    told = fates(there.site, there.partition, there.preemption, "successor", signal="USR2", lead_s=300)
    assert [each.event for each in told] == ["preemption", "time limit", "lost node", "scancel"]
    assert told[0].happens == sentence
