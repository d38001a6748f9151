"""What Slurm tells about jobs and nodes, as typed records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job as one of Slurm's commands printed it. Times are local and naive, as Slurm prints them."""

    job_id: str
    """The number; an array shows as ``12_[0-3]`` in squeue."""
    name: str = ""
    state: str
    """Slurm's long state in capitals, as PENDING; a state unknown to us is passed on as it is."""
    reason: str = ""
    """Why it is pending, in Slurm's word; empty if there is none."""
    user: str = ""
    partition: str = ""
    qos: str = ""
    account: str = ""
    nodes: int | None = None
    node_list: str = ""
    submit_time: datetime | None = None
    start_time: datetime | None = None
    """For a pending job Slurm's estimate, if it has one."""
    end_time: datetime | None = None
    """For a running job the end of its time limit."""
    time_limit_min: int | None = None
    """None if unlimited or not told."""
    elapsed_s: int | None = None
    comment: str = ""
    """What the job was submitted with; sacct knows it of ended jobs only, and only where the site stores it."""
    work_dir: str = ""
    restarts: int | None = None
    """How often it was requeued; only scontrol tells."""
    exit_code: int | None = None
    """Only sacct and scontrol tell, and only after the end."""
    signal: int | None = None
    """The signal that ended the job; 0 for none."""
    dependency: str = ""
    source: Literal["squeue", "sacct", "scontrol", "process"]
    """Who said so; process: a job of this machine, without Slurm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDetails:
    """One job as ``scontrol show job`` prints it: all that only the controller knows."""

    record: JobRecord
    requeue: bool | None
    """Whether Slurm may requeue it; None if not told."""
    preempt_time: datetime | None
    """When it was chosen to be preempted; None if it was not."""
    batch_host: str
    """The node where its script runs; empty while it is pending."""
    std_out: str
    std_err: str
    command: str
    fields: Mapping[str, str]
    """Every ``Key=Value`` as printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Nodes of one partition that are alike and in the same state."""

    count: int
    cpus: int
    memory_mb: int
    gres: str
    """Generic resources of one node in Slurm's words, as ``gpu:a100:4``."""
    gpus: int
    """GPUs of one node."""
    max_time_min: int | None
    """The partition's time limit; None if it has none."""
    state: str
    """Slurm's long node state in small letters, without the marks it appends."""
    available: bool
    """Whether jobs can be placed there: the partition is up, the nodes answer and are not being taken out."""
