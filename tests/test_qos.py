"""QOS are read as sacctmgr prints them, and a job that asks for none gets the one that slurmctld gives it."""

from __future__ import annotations

import pytest

from hpcgemma.slurm.qos import Qos, default_qos, parse_associations, parse_show_qos, qos_of
from tests.sites import recorded, recorded_qos

NAMES = ("normal", "boost_qos_dbg", "boost_qos_lprod")


def test_the_qos_of_a_site_are_read() -> None:
    found = [qos_of(each) for each in parse_show_qos(recorded("show_qos"))]
    assert found == [Qos(name=name, preempt_mode=None, grace_s=0) for name in NAMES]


def test_who_preempts_whom_is_read() -> None:
    assert recorded_qos()[len(NAMES) :] == [
        Qos(name="scavenger", preempt_mode="requeue", grace_s=60),
        Qos(name="spare", preempt_mode="cancel", grace_s=60, exempt_s=3600),
        Qos(name="express", preempt_mode=None, grace_s=0, preempts=("scavenger", "spare")),
    ]


def test_a_silent_accounting_has_no_qos() -> None:
    assert parse_show_qos(recorded("show_qos_down")) == []


@pytest.mark.parametrize(
    ("row", "mode", "within"),
    [
        ("x|within,requeue|00:00:00||", "requeue", True),
        ("x|within|00:00:00||", "off", True),
        ("x|suspend|00:00:00||", "suspend", False),
        ("x|cluster|00:00:00||", None, False),
    ],
)
def test_jobs_of_one_qos_may_preempt_each_other(row: str, mode: str | None, within: bool) -> None:
    found = qos_of(parse_show_qos(row)[0])
    assert (found.preempt_mode, found.preempts_within) == (mode, within)


OWN = "demo|here|demo||long|long,normal,short\n"
ROWS = [
    ("the default of its association", OWN, None, "long"),
    ("the only one allowed", "demo|here|demo|||short\n", None, "short"),
    ("normal, of several", "demo|here|demo|||short,long\n", None, "normal"),
    ("normal, without an association here", "demo|there|demo||long|long\n", None, "normal"),
    ("of the account that is asked for", OWN + "demo|here|other||short|short\n", "other", "short"),
    ("of the association with its partition", OWN + "demo|here|demo|gpu|short|short\n", None, "short"),
    ("not of one with another partition", OWN + "demo|here|demo|cpu|short|short\n", None, "long"),
]


@pytest.mark.parametrize(("printed", "account", "name"), [each[1:] for each in ROWS], ids=[each[0] for each in ROWS])
def test_a_job_that_asks_for_no_qos_gets_its_accounts(printed: str, account: str | None, name: str) -> None:
    assert default_qos(parse_associations(printed), cluster="here", account=account, partition="gpu") == name


def test_the_default_of_the_recorded_account_is_normal() -> None:
    found = parse_associations(recorded("associations"))
    assert default_qos(found, cluster="testcluster", account=None, partition="boost_usr_prod") == "normal"
