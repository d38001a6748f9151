"""Slurm's commands are called as meant, and what the real ones printed is read without loss."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hpcgemma.slurm import commands, orders, refusals
from hpcgemma.slurm.records import JobRecord, NodeGroup
from hpcgemma.slurm.values import (
    clean_state,
    duration_min,
    duration_s,
    gpu_count,
    host_names,
    leading_int,
    local_time,
)

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "slurm_outputs" / "slurm-22.05.8.json").read_text(encoding="utf-8")
)
HOSTILE_NAME = "we|ird na\tme \x1f é'\"$(x)\nsecond=line"
COMMENT = "hpcgemma run=abc|def; step=3"

RUNNING = JobRecord(
    job_id="1000",
    name=HOSTILE_NAME,
    state="RUNNING",
    reason="",
    user="root",
    partition="boost_usr_prod",
    qos="normal",
    account="demo_acc",
    nodes=2,
    node_list="node[1-2]",
    submit_time=None,
    start_time=None,
    end_time=None,
    time_limit_min=30,
    elapsed_s=None,
    comment=COMMENT,
    work_dir="/cluster",
    restarts=None,
    exit_code=None,
    signal=None,
    dependency="",
    source="squeue",
)


def output(case: str) -> str:
    text = RECORDED[case]["stdout"]
    assert isinstance(text, str)
    return text


def complaint(case: str) -> str:
    text = RECORDED[case]["stderr"]
    assert isinstance(text, str)
    return text


def timeless(record: JobRecord) -> JobRecord:
    """Return the record without what differs from one recording to the next."""
    return replace(record, submit_time=None, start_time=None, end_time=None, elapsed_s=None)


# --- squeue ----------------------------------------------------------------------------------------------------


def test_squeue_is_read_whatever_a_job_is_called() -> None:
    records = {record.job_id: record for record in commands.parse_squeue(output("squeue"))}

    assert sorted(records) == ["1000", "1001", "1002", "1003", "1004_[0-3]", "1005"]
    assert timeless(records["1000"]) == RUNNING
    running = records["1000"]
    assert running.submit_time is not None
    assert running.start_time is not None
    assert running.end_time is not None
    assert (running.end_time - running.start_time).total_seconds() == 30 * 60


def test_squeue_tells_state_reason_and_dependency() -> None:
    records = {record.job_id: record for record in commands.parse_squeue(output("squeue"))}

    assert {job_id: (record.state, record.reason) for job_id, record in records.items()} == {
        "1000": ("RUNNING", ""),
        "1001": ("FAILED", "NonZeroExitCode"),
        "1002": ("CANCELLED", "JobHeldUser"),
        "1003": ("PENDING", "Dependency"),
        "1004_[0-3]": ("PENDING", "JobHeldUser"),
        "1005": ("PENDING", "BeginTime"),
    }
    assert records["1003"].dependency == "afterany:1000(unfulfilled)"
    assert records["1003"].start_time is None


@pytest.mark.parametrize("text", ["", "\n", "slurm_load_jobs error\n", "\x1e12\x1fPENDING\n", "no jobs today"])
def test_squeue_output_that_holds_no_job_is_no_error(text: str) -> None:
    assert commands.parse_squeue(text) == []


def test_squeue_is_asked_for_ended_jobs_too() -> None:
    assert commands.squeue_argv(["1", "2"])[:4] == ["squeue", "--noheader", "--states=all", "--jobs=1,2"]
    assert commands.squeue_argv()[3] == "--me"


# --- sacct -----------------------------------------------------------------------------------------------------


def test_sacct_is_read_whatever_a_job_is_called() -> None:
    records = {record.job_id: record for record in commands.parse_sacct(output("sacct"))}

    assert sorted(records) == ["1000", "1001", "1002", "1005"]
    # The accounting stores a double quote as a backquote, and comments only at the end of a job.
    expected = replace(RUNNING, name=HOSTILE_NAME.replace('"', "`"), comment="", exit_code=0, signal=0, source="sacct")
    assert timeless(records["1000"]) == expected
    assert records["1000"].end_time is None


def test_sacct_tells_the_end_of_a_job() -> None:
    records = {record.job_id: record for record in commands.parse_sacct(output("sacct"))}

    assert (records["1001"].state, records["1001"].exit_code, records["1001"].signal) == ("FAILED", 3, 0)
    assert records["1001"].end_time is not None
    # Recorded as "CANCELLED by 0".
    assert records["1002"].state == "CANCELLED"
    assert records["1002"].node_list == ""


def test_sacct_tells_each_attempt_of_a_requeued_job() -> None:
    attempts = commands.parse_sacct(output("sacct_attempts"))

    assert [(record.job_id, record.state) for record in attempts] == [("1005", "REQUEUED"), ("1005", "PENDING")]


@pytest.mark.parametrize("text", ["", "\n", "12|RUNNING\n", "Slurm accounting storage is disabled\n"])
def test_sacct_output_that_holds_no_job_is_no_error(text: str) -> None:
    assert commands.parse_sacct(text) == []


def test_sacct_is_always_given_a_start() -> None:
    argv = commands.sacct_argv(since=datetime(2026, 1, 2), job_ids=["1", "2"], uid=7, every_attempt=True)

    assert argv[:5] == ["sacct", "--allocations", "--noheader", "--parsable2", "--delimiter=\x1f"]
    assert argv[5:9] == ["--starttime=2026-01-02T00:00:00", "--duplicates", "--jobs=1,2", "--uid=7"]


# --- scontrol --------------------------------------------------------------------------------------------------


def test_show_job_tells_of_a_preemption_and_survives_a_hostile_name() -> None:
    details = commands.parse_show_job(output("show_preempted"))

    assert details is not None
    assert timeless(details.record) == replace(RUNNING, restarts=0, exit_code=0, signal=0, source="scontrol")
    assert (details.requeue, details.batch_host, details.std_err) == (True, "node1", "/dev/null")
    assert details.preempt_time is not None
    assert details.record.end_time is not None
    # The grace time, not the time limit any more; the 30 s are counted from the next second.
    assert 29 <= (details.record.end_time - details.preempt_time).total_seconds() <= 31
    assert details.fields["TRES"] == "cpu=2,mem=30000M,node=2,billing=2,gres/gpu=8"


def test_show_job_tells_how_often_a_job_was_requeued() -> None:
    details = commands.parse_show_job(output("show_requeued"))

    assert details is not None
    assert (details.record.state, details.record.reason, details.record.restarts) == ("PENDING", "BeginTime", 1)
    assert details.preempt_time is None
    assert details.batch_host == ""


@pytest.mark.parametrize("text", ["", "\n", "JobId=", "No jobs in the system\n"])
def test_show_job_output_that_holds_no_job_is_none(text: str) -> None:
    assert commands.parse_show_job(text) is None


def test_show_config_is_read() -> None:
    config = commands.parse_show_config(output("show_config"))

    assert {key: config[key] for key in ("JobRequeue", "KillWait", "PreemptMode", "AuthAltTypes")} == {
        "JobRequeue": "1",
        "KillWait": "5 sec",
        "PreemptMode": "REQUEUE",
        "AuthAltTypes": "",
    }
    assert config["AuthInfo"].endswith(",cred_expire=6")


def test_a_requeued_job_is_never_told_to_start_in_the_same_second() -> None:
    assert orders.start_now_argv("12") == ["scontrol", "update", "JobId=12", "StartTime=now+5"]


# --- sinfo -----------------------------------------------------------------------------------------------------


def test_sinfo_tells_the_nodes_of_a_partition() -> None:
    idle = NodeGroup(
        count=2,
        cpus=32,
        memory_mb=514000,
        gres="gpu:a100:4",
        gpus=4,
        max_time_min=1440,
        state="idle",
        available=True,
    )

    assert commands.parse_sinfo(output("sinfo")) == [replace(idle, state="mixed"), idle]
    assert commands.parse_sinfo(output("sinfo_unknown")) == []


@pytest.mark.parametrize(
    ("partition", "state", "available"),
    [
        ("up", "idle~", True),
        ("up", "allocated", True),
        ("up", "idle*", False),
        ("up", "drained", False),
        ("up", "something new", False),
        ("down", "idle", False),
    ],
)
def test_nodes_are_available_where_jobs_can_be_placed(partition: str, state: str, available: bool) -> None:
    [group] = commands.parse_sinfo("\x1f".join(["1", "32+", "514000+", "infinite", partition, state, "(null)"]))

    assert group.available is available
    assert (group.cpus, group.memory_mb, group.max_time_min, group.gpus) == (32, 514000, None, 0)


# --- sbatch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "job_id"),
    [
        (output("submitted"), "1014"),
        (output("submitted_in_words"), "1015"),
        ("1014;leonardo\n", "1014"),
        ("Submitted batch job 7 on cluster dardel\n", "7"),
        ("Welcome! 3 projects\n42\nBye.\n", "42"),
        ("", None),
        ("sbatch: something else\n", None),
    ],
)
def test_the_job_id_is_found_in_what_sbatch_prints(text: str, job_id: str | None) -> None:
    assert orders.parse_sbatch(text) == job_id


def test_a_script_is_submitted_by_itself_or_after_another_job() -> None:
    script = Path("/run folder/job.sbatch")

    assert orders.sbatch_argv(script) == ["sbatch", "--parsable", "/run folder/job.sbatch"]
    assert orders.sbatch_argv(script, "12")[2] == "--dependency=afterany:12"
    assert orders.sbatch_argv(script, "afterok:12")[2] == "--dependency=afterok:12"
    assert orders.sbatch_argv(script, "12", "B:USR2@75") == [
        "sbatch",
        "--parsable",
        "--signal=B:USR2@75",
        "--dependency=afterany:12",
        "/run folder/job.sbatch",
    ]


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("account", "Slurm does not let you use this account in this partition"),
        ("qos", "Slurm does not let you use this QOS"),
        ("partition", "this cluster has no such partition"),
        ("partition_time", "the job asks for more time than its partition allows"),
        ("partition_nodes", "the job asks for more nodes than its partition has or allows"),
        ("memory", "no node of the partition has the memory that the job asks for"),
        ("cpus", "the job asks for more CPU cores than Slurm can or may give it"),
        ("gpus", "no node of the partition has the GPUs, cores and memory that the job asks for together"),
        ("gpu_type", "no node of the partition has the GPUs, cores and memory that the job asks for together"),
        ("feature", "no node of the partition has the feature that the job asks for"),
        ("qos_nodes", "the job exceeds a limit of its QOS or account"),
        ("qos_time", "the job asks for more time than its QOS allows"),
        ("qos_submit", "you have as many jobs in the queue as Slurm allows you"),
        ("dependency", "the job is to wait for another in a way Slurm does not understand"),
        ("node_name", "the job names a node that does not exist"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_quotes_slurm(case: str, problem: str) -> None:
    error = refusals.refusal(complaint(f"refused_{case}"))

    assert error.problem == f"{problem} (Slurm: {refusals.own_words(complaint(f'refused_{case}'))})"
    assert error.hint


def test_a_refusal_we_do_not_know_quotes_slurm() -> None:
    error = refusals.refusal("sbatch: error: The moon is full\n")

    assert error.problem == "Slurm refused the job: The moon is full"


@pytest.mark.parametrize(
    ("case", "failure"),
    [
        ("sbatch_paused", "answer lost"),
        ("squeue_paused", "answer lost"),
        ("scancel_paused", "answer lost"),
        ("sbatch_down", "unreachable"),
        ("squeue_down", "unreachable"),
        ("scancel_down", "unreachable"),
        ("show_down", "unreachable"),
        ("sacct_down", "unreachable"),
        ("sacct_disabled", "accounting disabled"),
        ("squeue_unknown", "unknown job"),
        ("show_unknown", "unknown job"),
        ("requeue_unknown", "unknown job"),
        ("start_now_unknown", "unknown job"),
        ("requeue_pending", "other"),
        ("requeue_forbidden", "other"),
        ("time_limit_unknown", "unknown job"),
        ("batch_unknown", "unknown job"),
        ("refused_account", "other"),
    ],
)
def test_a_failure_of_the_controller_is_told_from_one_of_the_job(case: str, failure: str) -> None:
    assert refusals.failure_of(complaint(case)) == failure


# --- orders ----------------------------------------------------------------------------------------------------


def test_the_steps_of_a_job_are_those_that_srun_started_the_newest_last() -> None:
    assert commands.parse_steps(output("steps")) == ["1016.1"]
    assert commands.parse_steps("7.batch\n7.10\n7.extern\n7.9\n") == ["7.9", "7.10"]
    assert commands.parse_steps(output("steps_unknown")) == []


def test_a_job_is_signalled_through_its_batch_script_or_one_of_its_steps() -> None:
    assert orders.signal_batch_argv("12", "USR2") == ["scancel", "--signal=USR2", "--batch", "12"]
    assert orders.signal_step_argv("12.1", "KILL") == ["scancel", "--signal=KILL", "12.1"]


def test_a_time_limit_is_set_in_minutes() -> None:
    assert orders.set_time_limit_argv("12", 5) == ["scontrol", "update", "JobId=12", "TimeLimit=5"]


# --- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-02:03:04", 93784),
        ("02:03:04", 7384),
        ("30:00", 1800),
        ("0:00", 0),
        ("1:02:03.456", 3723),
        ("UNLIMITED", None),
        ("infinite", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_a_duration_is_read(text: str, seconds: int | None) -> None:
    assert duration_s(text) == seconds


def test_minutes_are_rounded_up() -> None:
    assert duration_min("0:01") == 1
    assert duration_min("UNLIMITED") is None


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:4", 4),
        ("gpu:a100:3(S:0,1),gpu:a100_1g.5gb:7,tmpfs:3T", 10),
        ("tmpfs:2T,gpu:h100-80:8", 8),
        ("(null)", 0),
        ("mygpu:4", 0),
        ("", 0),
    ],
)
def test_gpus_are_counted_among_the_resources_of_a_node(gres: str, gpus: int) -> None:
    assert gpu_count(gres) == gpus


@pytest.mark.parametrize(
    ("hostlist", "names"),
    [
        ("node1", ["node1"]),
        ("node[1-2,4],login7", ["node1", "node2", "node4", "login7"]),
        ("lrdn[0099-0101]", ["lrdn0099", "lrdn0100", "lrdn0101"]),
        ("r[1-2]n[01-02]-ib", ["r1n01-ib", "r1n02-ib", "r2n01-ib", "r2n02-ib"]),
        ("", []),
    ],
)
def test_the_names_of_hosts_are_unfolded(hostlist: str, names: list[str]) -> None:
    assert host_names(hostlist) == names


def test_values_that_are_none_are_no_error() -> None:
    assert local_time("Unknown") is None
    assert local_time("N/A") is None
    assert leading_int("many") is None
    assert clean_state("") == "UNKNOWN"
    assert clean_state("CANCELLED by 1234") == clean_state("CANCELLED+") == "CANCELLED"


@pytest.mark.parametrize("text", ["12", "12_3"])
def test_numbers_and_tasks_of_arrays_are_job_ids(text: str) -> None:
    assert commands.is_job_id(text)


@pytest.mark.parametrize("text", ["", "0", "abc", "-1", "12,13", "12_[0-3]", "12\n", "--me"])
def test_other_texts_are_no_job_ids(text: str) -> None:
    assert not commands.is_job_id(text)
