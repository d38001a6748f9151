"""The report of a drill: its rows, what the cluster does, and where that is not what `doctor` says."""

from __future__ import annotations

import dataclasses
from typing import Any

from hpcgemma.cli import console
from hpcgemma.drill.acts import Act, Deed
from hpcgemma.drill.outcome import Outcome
from hpcgemma.drill.report import COLUMNS, Prediction, Report, lines_of, remarks_on, rows
from hpcgemma.fate import Choice
from tests.sites import destination

SUCCESSOR = Choice("successor", "it starts a second after its nodes are free")
HERE = Prediction(scheduler="none", signal="USR2", lead_s=30)
CLUSTER = Prediction(
    scheduler="slurm", destination=destination("boost_usr_prod"), choice=SUCCESSOR, signal="USR2", lead_s=20
)


def deed(act: Act, **facts: Any) -> Deed:
    return Deed(act=act, at=100.0, attempt=1, job_id="7", **facts)


WARNED = Outcome(
    deed=deed(Act.WARNED, command="scancel --signal=USR2 --batch 7"),
    noticed_after_s=0.1,
    signal="SIGUSR2",
    saved_in_s=0.62,
    back_after_s=26.9,
    queued_s=0.0,
    restart_s=26.2,
    way="in place",
    reached_step=126,
    resumed_step=126,
)
RANKS_KILLED = Outcome(
    deed=deed(Act.RANKS_KILLED),
    noticed_after_s=0.5,
    back_after_s=23.5,
    queued_s=0.0,
    restart_s=23.0,
    way="in place",
    reached_step=155,
    resumed_step=126,
    lost_steps=29,
    allowed_loss=100,
    repeated_steps=29,
)
REQUEUED = Outcome(
    deed=deed(Act.REQUEUED),
    noticed_after_s=0.2,
    signal="SIGTERM",
    saved_in_s=0.6,
    back_after_s=24.1,
    queued_s=7.5,
    restart_s=16.0,
    hastened=True,
    way="requeue",
    node_before="node1",
    node_after="node2",
    reached_step=155,
    resumed_step=155,
)
TIME_LIMIT = Outcome(
    deed=deed(Act.TIME_LIMIT, limit_at=200.0),
    noticed_after_s=70.0,
    before_limit_s=30.0,
    signal="SIGUSR2",
    saved_in_s=0.5,
    back_after_s=90.0,
    queued_s=2.0,
    restart_s=15.0,
    way="successor",
    reached_step=900,
    resumed_step=900,
)
JOB_KILLED = Outcome(
    deed=deed(Act.JOB_KILLED, stood_still="job 8 ended as FAILED."),
    back_after_s=40.0,
    queued_s=1.0,
    restart_s=15.0,
    way="resume",
    reached_step=930,
    resumed_step=900,
    lost_steps=30,
    allowed_loss=100,
    repeated_steps=30,
)
ALL = (WARNED, RANKS_KILLED, REQUEUED, TIME_LIMIT, JOB_KILLED)


def report(*outcomes: Outcome, prediction: Prediction = CLUSTER, planned: tuple[Act, ...] | None = None) -> Report:
    return Report(
        run="drill-1",
        folder="/runs/drill-1",
        profile="leonardo_test",
        scheduler=prediction.scheduler,
        place="on CPUs",
        interval=100,
        planned=planned or tuple(outcome.deed.act for outcome in outcomes),
        outcomes=outcomes,
        remarks=remarks_on(outcomes, prediction),
        end="COMPLETED: finished at step 8000",
    )


def test_each_act_is_a_row() -> None:
    refused = Outcome(deed=deed(Act.REQUEUED, refused="disabled"))
    assert rows([WARNED, RANKS_KILLED, JOB_KILLED, refused]) == [
        ("warned", "0.1 s", "0.6 s", "27 s", "0.0 s", "26 s", "126", "0", "", "in place"),
        ("ranks-killed", "0.5 s", "", "24 s", "0.0 s", "23 s", "126", "29/100", "29/29", "in place"),
        ("job-killed", "", "", "40 s", "1.0 s", "15 s", "900", "30/100", "30/30", "resume"),
        ("requeued", *[""] * 8, "refused"),
    ]


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    assert max(len(line) for line in console.table_text(COLUMNS, rows(ALL)).splitlines()) <= 80


def test_what_a_cluster_does_stands_beside_what_doctor_says() -> None:
    whole = report(*ALL)
    assert not whole.has_failed
    assert lines_of(whole) == [
        "what this cluster does",
        "  a signal by hand: The ranks saved within 0.6 s of SIGUSR2. The run went on in the same allocation, 27 s "
        "later, no step lost.",
        "  killed ranks: It was noticed after 0.5 s. The run went on in the same allocation, 24 s later, "
        "29 steps lost.",
        "  requeue: You may requeue your jobs. The ranks saved within 0.6 s of SIGTERM. The run went on in the same "
        "job, anew on node2 instead of node1, 24 s later, no step lost. hpcgemma cut Slurm's wait short, as each "
        "look from outside does.",
        "    doctor says: a requeued job waits 7 s by Slurm's rule; SIGKILL follows SIGTERM after 5 s",
        "  time limit: SIGUSR2 came 30 s before it. The ranks saved within 0.5 s of SIGUSR2. The run went on in a "
        "successor, 90 s later, no step lost.",
        "    doctor says: SIGUSR2 comes 20 s before the limit, up to 60 s early; the run goes on by successor: it "
        "starts a second after its nodes are free",
        "  killed job: The run stood still: job 8 ended as FAILED. The run went on by hpcgemma resume, 40 s later, "
        "30 steps lost.",
        "    hpcgemma expects: Slurm requeues no job whose script was killed; hpcgemma resume goes on",
        "  exactness: 59 steps were made twice, each with the same loss and gradient norm, bit for bit.",
        "  preemption: No user can make it happen.",
        "    doctor says: Jobs of partition urgent may take its nodes. Each rank gets SIGTERM, the batch host nothing, "
        "and after 30 s all is ended. Slurm then requeues the job. The ranks save, and a successor goes on; one that "
        "is killed before is requeued, to its last checkpoint.",
        "  lost node: No user can make it happen.",
        "    doctor says: Nobody is warned. After 20 s of silence Slurm ends the job and requeues it. The run goes on "
        "from its last checkpoint by itself.",
        "",
        "run drill-1 ended as COMPLETED: finished at step 8000",
    ]


def test_where_the_cluster_does_otherwise_that_is_said() -> None:
    by_requeue = dataclasses.replace(TIME_LIMIT, way="requeue", before_limit_s=-1.0)
    never = dataclasses.replace(REQUEUED, hastened=False, queued_s=1.0)
    refused = Outcome(deed=deed(Act.REQUEUED, refused="Slurm's command 'scontrol requeue 7' failed: disabled"))
    by_link = dataclasses.replace(JOB_KILLED, way="link", deed=deed(Act.JOB_KILLED))
    remarks = remarks_on([by_requeue, never, refused, by_link], CLUSTER)
    assert [remark.differs for remark in remarks[:4]] == [True, True, True, True]
    assert remarks[0].seen.startswith("No warning came before it. ")
    assert remarks[2].seen == "It was refused: Slurm's command 'scontrol requeue 7' failed: disabled"
    assert remarks[2].told == "JobRequeue=1, and the job asks for --requeue"
    chain = dataclasses.replace(CLUSTER, choice=Choice("chain", "the profile says so"))
    assert not remarks_on([by_link], chain)[0].differs


def test_a_limit_that_was_lowered_below_the_lead_is_warned_of_at_once() -> None:
    early = dataclasses.replace(TIME_LIMIT, before_limit_s=75.0)
    [remark, *_] = remarks_on([early], dataclasses.replace(CLUSTER, lead_s=300))
    assert "SIGUSR2 comes 300 s before the limit, up to 60 s early (the limit was lowered to 100 s" in remark.told
    assert not remark.differs


def test_a_failure_is_a_sentence_and_a_remedy() -> None:
    lost = dataclasses.replace(WARNED, lost_steps=12)
    failed = report(lost, planned=(Act.WARNED, Act.RANKS_KILLED))
    assert failed.has_failed
    assert lines_of(failed)[-5:] == [
        "Failed: warned: 12 steps were lost, where none should be",
        "Try:    hpcgemma logs drill-1 --supervisor says what ended the ranks before they had saved",
        "Failed: not done, since the run ended before: ranks-killed",
        "Try:    drill again, with a longer run: --set training.max_steps=100000",
        "run drill-1 ended as COMPLETED: finished at step 8000",
    ]
    broken = dataclasses.replace(failed, end="FAILED: no space left")
    assert lines_of(broken)[-2:] == [
        "Try:    hpcgemma status drill-1  says why; then drill again",
        "run drill-1 ended as FAILED: no space left",
    ]


def test_the_mapping_holds_what_scripts_need() -> None:
    said = report(WARNED, JOB_KILLED, prediction=HERE).as_mapping()
    assert said["succeeded"] is True
    assert said["not_done"] == []
    warned, killed = said["acts"]
    assert (warned["act"], warned["command"], warned["same_bits"]) == (
        "warned",
        "scancel --signal=USR2 --batch 7",
        None,
    )
    assert (killed["same_bits"], killed["lost_steps"], killed["way"], killed["problem"]) == (True, 30, "resume", "")
    assert [remark["topic"] for remark in said["cluster"]] == ["a signal by hand", "killed job", "exactness"]
