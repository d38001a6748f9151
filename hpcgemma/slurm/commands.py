"""What Slurm is asked: how its commands are called and how their text is read. Pure; ``client.py`` runs them.

Text, not ``--json``: that came late, changed its schema with every release, and ignores filters in 22.05 and
23.02. Fields are parted by ASCII's unit separator, which squeue and sacct pass through (22.05.8). What a user
may write freely (comment, folder, name) comes last, so that nothing in it can shift a field; a job name may
even hold newlines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from hpcgemma.slurm.records import JobDetails, JobRecord, NodeGroup
from hpcgemma.slurm.values import (
    clean_state,
    duration_min,
    duration_s,
    exit_and_signal,
    gpu_count,
    leading_int,
    local_time,
    text_or_empty,
)

__all__ = ["JobDetails", "JobRecord", "NodeGroup"]

_FIELD_END = "\x1f"
_RECORD_START = "\x1e"
_SQUEUE_FIELDS = tuple("iTruPqaDNVSelMEkZj")
_SACCT_FIELDS = (
    *("JobIDRaw", "State", "ExitCode", "Reason", "User", "Partition", "QOS", "Account", "NNodes", "NodeList"),
    *("Submit", "Start", "End", "ElapsedRaw", "TimelimitRaw", "Comment", "WorkDir", "JobName"),
)
_SINFO_FIELDS = tuple("DcmlaTG")
_JOB_ID = re.compile(r"[1-9]\d*(_\d+)?")
_STEP_ID = re.compile(r"(?P<job>[1-9]\d*)\.(?P<number>\d+)")

# Node states in which jobs can be placed, now or when the present ones end.
_USABLE_NODE_STATES = {"idle", "mixed", "allocated", "completing", "planned", "reserved"}


def is_job_id(text: str) -> bool:
    """Return whether a text can be a job id: a number, or ``number_number`` for a task of an array."""
    return _JOB_ID.fullmatch(text) is not None


# --- squeue -------------------------------------------------------------------------------------------------


def squeue_argv(job_ids: Sequence[str] | None = None) -> list[str]:
    """Return the squeue call for these jobs, or all of the caller's, with those that ended lately."""
    which = ["--me"] if job_ids is None else [f"--jobs={','.join(job_ids)}"]
    form = _RECORD_START + _FIELD_END.join(f"%{letter}" for letter in _SQUEUE_FIELDS)
    return ["squeue", "--noheader", "--states=all", *which, f"--format={form}"]


def parse_squeue(output: str) -> list[JobRecord]:
    """Return the jobs in squeue's output; a record that is no job is left out."""
    records = []
    for chunk in re.split(rf"{_RECORD_START}(?=\d[^{_FIELD_END}\n]*{_FIELD_END})", output)[1:]:
        values = chunk.removesuffix("\n").split(_FIELD_END, len(_SQUEUE_FIELDS) - 1)
        if len(values) < len(_SQUEUE_FIELDS):
            continue
        field = dict(zip(_SQUEUE_FIELDS, values, strict=True))
        records.append(
            JobRecord(
                job_id=field["i"],
                state=clean_state(field["T"]),
                reason=text_or_empty(field["r"]),
                user=field["u"],
                partition=field["P"],
                qos=text_or_empty(field["q"]),
                account=text_or_empty(field["a"]),
                nodes=leading_int(field["D"]),
                node_list=field["N"],
                submit_time=local_time(field["V"]),
                start_time=local_time(field["S"]),
                end_time=local_time(field["e"]),
                time_limit_min=duration_min(field["l"]),
                elapsed_s=duration_s(field["M"]),
                dependency=text_or_empty(field["E"]),
                comment=text_or_empty(field["k"]),
                work_dir=field["Z"],
                name=field["j"],
                restarts=None,
                exit_code=None,
                signal=None,
                source="squeue",
            )
        )
    return records


def steps_argv(job_id: str) -> list[str]:
    """Return the call that lists the steps of a running job."""
    return ["squeue", "--steps", "--noheader", f"--jobs={job_id}", "--format=%i"]


def parse_steps(output: str) -> list[str]:
    """Return the steps that srun has started, as ``1234.0``, oldest first; the batch script's own is none of them."""
    found = (_STEP_ID.fullmatch(line.strip()) for line in output.splitlines())
    steps = [(int(match["number"]), match.group()) for match in found if match]
    return [step for _, step in sorted(steps)]


# --- sacct --------------------------------------------------------------------------------------------------


def sacct_argv(
    *,
    since: datetime,
    job_ids: Sequence[str] | None = None,
    uid: int | None = None,
    every_attempt: bool = False,
) -> list[str]:
    """Return the sacct call for whole jobs, without their steps.

    Args:
        since: Only jobs in any state after this; without it sacct would look at today only.
        job_ids: Only these jobs.
        uid: Only this user's jobs; root would otherwise see everybody's.
        every_attempt: One record for each run of a requeued job, not the newest only.
    """
    argv = ["sacct", "--allocations", "--noheader", "--parsable2", f"--delimiter={_FIELD_END}"]
    argv.append(f"--starttime={since:%Y-%m-%dT%H:%M:%S}")
    if every_attempt:
        argv.append("--duplicates")
    if job_ids is not None:
        argv.append(f"--jobs={','.join(job_ids)}")
    if uid is not None:
        argv.append(f"--uid={uid}")
    return [*argv, f"--format={','.join(_SACCT_FIELDS)}"]


def parse_sacct(output: str) -> list[JobRecord]:
    """Return the jobs in sacct's output, in its order; a newline in a name does not start a record."""
    records = []
    for chunk in re.split(rf"^(?=\d[\d_+.\[\]-]*{_FIELD_END})", output, flags=re.MULTILINE):
        values = chunk.removesuffix("\n").split(_FIELD_END, len(_SACCT_FIELDS) - 1)
        if len(values) < len(_SACCT_FIELDS):
            continue
        field = dict(zip(_SACCT_FIELDS, values, strict=True))
        exit_code, signal = exit_and_signal(field["ExitCode"])
        records.append(
            JobRecord(
                job_id=field["JobIDRaw"],
                state=clean_state(field["State"]),
                reason=text_or_empty(field["Reason"]),
                user=field["User"],
                partition=field["Partition"],
                qos=text_or_empty(field["QOS"]),
                account=text_or_empty(field["Account"]),
                nodes=leading_int(field["NNodes"]),
                node_list=text_or_empty(field["NodeList"]),
                submit_time=local_time(field["Submit"]),
                start_time=local_time(field["Start"]),
                end_time=local_time(field["End"]),
                time_limit_min=leading_int(field["TimelimitRaw"]),
                elapsed_s=leading_int(field["ElapsedRaw"]),
                comment=field["Comment"],
                work_dir=field["WorkDir"],
                name=field["JobName"],
                dependency="",
                restarts=None,
                exit_code=exit_code,
                signal=signal,
                source="sacct",
            )
        )
    return records


# --- scontrol -----------------------------------------------------------------------------------------------

# In ``scontrol show job`` these fields take the rest of their line, spaces and equal signs included.
_WHOLE_LINE = ("AdminComment", "Command", "Comment", "StdErr", "StdIn", "StdOut", "SystemComment", "WorkDir")
_WHOLE_LINE_FIELD = re.compile(rf"   (?P<key>{'|'.join(_WHOLE_LINE)})=(?P<value>.*)")
_PAIR = re.compile(r"(?P<key>[A-Za-z][\w/:.]*)=(?P<value>\S*)")


def show_job_argv(job_id: str) -> list[str]:
    """Return the call that shows all the controller knows of a job."""
    return ["scontrol", "show", "job", job_id]


def parse_show_job(output: str) -> JobDetails | None:
    """Return the job in the output of ``scontrol show job``; None if there is none."""
    head = re.match(r"JobId=(?P<id>\d+)(?: Array\S+)* JobName=(?P<name>.*?)\n(?=   UserId=)", output, re.DOTALL)
    if head is None:
        return None
    fields: dict[str, str] = {}
    for line in output[head.end() :].splitlines():
        if whole := _WHOLE_LINE_FIELD.fullmatch(line):
            fields[whole["key"]] = text_or_empty(whole["value"])
        elif line.startswith("   "):
            # A line that does not start like this goes on with a comment that holds a newline.
            fields.update({pair["key"]: text_or_empty(pair["value"]) for pair in _PAIR.finditer(line)})
    state = clean_state(fields.get("JobState", ""))
    exit_code, signal = exit_and_signal(fields.get("ExitCode", ""))
    record = JobRecord(
        job_id=head["id"],
        name=head["name"],
        state=state,
        reason=fields.get("Reason", ""),
        user=fields.get("UserId", "").partition("(")[0],
        partition=fields.get("Partition", ""),
        qos=fields.get("QOS", ""),
        account=fields.get("Account", ""),
        nodes=leading_int(fields.get("NumNodes", "")),
        node_list=fields.get("NodeList", ""),
        submit_time=local_time(fields.get("SubmitTime", "")),
        start_time=local_time(fields.get("StartTime", "")),
        end_time=local_time(fields.get("EndTime", "")),
        time_limit_min=duration_min(fields.get("TimeLimit", "")),
        elapsed_s=duration_s(fields.get("RunTime", "")),
        comment=fields.get("Comment", ""),
        work_dir=fields.get("WorkDir", ""),
        restarts=leading_int(fields.get("Restarts", "")),
        exit_code=exit_code,
        signal=signal,
        dependency=fields.get("Dependency", ""),
        source="scontrol",
    )
    return JobDetails(
        record=record,
        requeue={"0": False, "1": True}.get(fields.get("Requeue", "")),
        preempt_time=local_time(fields.get("PreemptTime", "")),
        batch_host=fields.get("BatchHost", ""),
        std_out=fields.get("StdOut", ""),
        std_err=fields.get("StdErr", ""),
        command=fields.get("Command", ""),
        fields=fields,
    )


def show_config_argv() -> list[str]:
    """Return the call that shows the site's configuration."""
    return ["scontrol", "show", "config"]


def parse_show_config(output: str) -> dict[str, str]:
    """Return the ``Key = Value`` pairs of ``scontrol show config``."""
    pairs = (line.partition("=") for line in output.splitlines() if re.match(r"\w+\s*=", line))
    return {key.strip(): text_or_empty(value) for key, _, value in pairs}


def show_partitions_argv() -> list[str]:
    """Return the call that shows all partitions."""
    return ["scontrol", "show", "partition"]


def parse_show_partitions(output: str) -> list[dict[str, str]]:
    """Return the ``Key=Value`` pairs of each partition in the output of ``scontrol show partition``."""
    found: list[dict[str, str]] = []
    for line in output.splitlines():
        if line.startswith("PartitionName="):
            found.append({})
        if found:
            found[-1].update({pair["key"]: text_or_empty(pair["value"]) for pair in _PAIR.finditer(line)})
    return found


# --- sinfo --------------------------------------------------------------------------------------------------


def sinfo_argv(partition: str) -> list[str]:
    """Return the call for a partition's nodes; ``--exact`` keeps nodes of unlike shape apart."""
    form = _FIELD_END.join(f"%{letter}" for letter in _SINFO_FIELDS)
    return ["sinfo", "--noheader", "--exact", f"--partition={partition}", f"--format={form}"]


def known_nodes_argv(nodes: Sequence[str]) -> list[str]:
    """Return the call that prints those of some nodes that the cluster has, a line for each of their partitions."""
    return ["sinfo", "--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%N"]


def parse_sinfo(output: str) -> list[NodeGroup]:
    """Return the groups of nodes in sinfo's output; none for a partition that does not exist."""
    groups = []
    for line in output.splitlines():
        values = line.split(_FIELD_END)
        if len(values) != len(_SINFO_FIELDS):
            continue
        field = dict(zip(_SINFO_FIELDS, values, strict=True))
        # Marks such as * (does not answer) or ~ (powered down) follow the state; only * forbids its use.
        state = field["T"].rstrip("*~#!%$@^-+")
        groups.append(
            NodeGroup(
                count=leading_int(field["D"]) or 0,
                cpus=leading_int(field["c"]) or 0,
                memory_mb=leading_int(field["m"]) or 0,
                gres=text_or_empty(field["G"]),
                gpus=gpu_count(field["G"]),
                max_time_min=duration_min(field["l"]),
                state=state,
                available=field["a"] == "up" and state in _USABLE_NODE_STATES and "*" not in field["T"],
            )
        )
    return groups
