"""The configuration files of a test cluster, as text. Pure: nothing is started or written here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

NUM_NODES = 4
GPUS_PER_NODE = 4
CPUS_PER_NODE = 32
NODE_MEMORY_MB = 514000

CLUSTER_NAME = "testcluster"
ACCOUNT = "demo_acc"
MAIN_PARTITION = "boost_usr_prod"
URGENT_PARTITION = "urgent"
SPOT_PARTITION = "spot"
REQUEUED_QOS = "scavenger"
CANCELLED_QOS = "spare"
URGENT_QOS = "express"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """What one test cluster differs in from another."""

    proctrack: Literal["linuxproc", "cgroup"] = "linuxproc"
    """How Slurm finds processes: linuxproc signals all descendants, cgroup (production) direct children."""

    send_user_signal: bool = False
    """True: a preempted job gets the signal it asked for with ``--signal``; False: SIGTERM."""

    accounting: bool = True
    """True: slurmdbd with MariaDB, accounts and QOS enforced; False: none of it, as on small sites."""

    grace_time_s: int = 30
    """Seconds between the preemption notice and the end of a job of the main partition."""

    cred_expire_s: int | None = 6
    """Seconds a requeued job waits, less one, at least 5; None for Slurm's own 120 s."""

    kill_wait_s: int = 5
    """Seconds between SIGTERM and SIGKILL at the end of a job."""

    min_job_age_s: int = 300
    """Seconds a finished job stays known to squeue and scontrol."""

    message_timeout_s: int = 10
    """Seconds a Slurm command waits for the controller's answer."""

    slurmd_timeout_s: int = 20
    """Seconds of a node's silence after which it is called DOWN and its jobs are requeued."""

    preempt_by: Literal["partition", "qos"] = "partition"
    """What decides who preempts whom; qos needs accounting, and has QOS of its own (``database.py``)."""

    qos_grace_s: int = 60
    """Seconds between the preemption notice and the end of a job, where the QOS decides."""

    memory_limits: bool = False
    """True: a job may use no more memory than it asked for, by cgroup, or by what Slurm samples every second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPorts:
    """The TCP ports of one test cluster, all on loopback."""

    controller: int
    database: int
    nodes: tuple[int, ...]


def node_names() -> tuple[str, ...]:
    """Return the names of the nodes: node1, node2 and so on."""
    return tuple(f"node{number}" for number in range(1, NUM_NODES + 1))


def slurm_conf(folder: Path, options: ClusterOptions, ports: ClusterPorts, *, hostname: str, first_job_id: int) -> str:
    """Return slurm.conf of a cluster whose files all lie in ``folder``."""
    auth_info = f"socket={folder}/munge/socket"
    if options.cred_expire_s is not None:
        auth_info += f",cred_expire={options.cred_expire_s}"
    lines = [
        f"ClusterName={CLUSTER_NAME}",
        f"SlurmctldHost={hostname}(127.0.0.1)",
        f"SlurmctldPort={ports.controller}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo={auth_info}",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={folder}/slurmd-%n.log",
        "MpiDefault=none",
        "SwitchType=switch/none",
        f"ProctrackType=proctrack/{options.proctrack}",
        f"TaskPlugin=task/{'cgroup' if options.proctrack == 'cgroup' else 'none'}",
        "JobAcctGatherType=jobacct_gather/linux",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "DefMemPerCPU=15000",
        "GresTypes=gpu",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,requeue_delay=1",
        "PriorityType=priority/basic",
        f"PreemptType=preempt/{'qos' if options.preempt_by == 'qos' else 'partition_prio'}",
        "PreemptMode=REQUEUE",
        "JobRequeue=1",
        # Refuse at once what can never run in the partition, as production sites do.
        "EnforcePartLimits=ALL",
        "ReturnToService=2",
        "InactiveLimit=0",
        f"FirstJobId={first_job_id}",
        f"KillWait={options.kill_wait_s}",
        f"MinJobAge={options.min_job_age_s}",
        f"MessageTimeout={options.message_timeout_s}",
        f"SlurmdTimeout={options.slurmd_timeout_s}",
        # The nodes claim more cores and memory than this machine has.
        "SlurmdParameters=config_overrides",
    ]
    if options.memory_limits and options.proctrack == "linuxproc":
        lines += ["JobAcctGatherParams=OverMemoryKill", "JobAcctGatherFrequency=task=1"]
    if options.send_user_signal:
        lines.append("SlurmctldParameters=preempt_send_user_signal")
    if options.accounting:
        lines += [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=localhost",
            f"AccountingStoragePort={ports.database}",
            # With munge elsewhere than its default place sacctmgr and sacct find it only by this line.
            f"AccountingStoragePass={folder}/munge/socket",
            "AccountingStorageTRES=gres/gpu",
            "AccountingStorageEnforce=associations,limits,qos",
            "AccountingStoreFlags=job_comment",
        ]
    else:
        lines.append("AccountingStorageType=accounting_storage/none")
    node = (
        f"NodeHostname={hostname} NodeAddr=127.0.0.1 Sockets=1 CoresPerSocket={CPUS_PER_NODE}"
        f" ThreadsPerCore=1 RealMemory={NODE_MEMORY_MB} Gres=gpu:a100:{GPUS_PER_NODE} State=UNKNOWN"
    )
    lines += [f"NodeName={name} Port={port} {node}" for name, port in zip(node_names(), ports.nodes, strict=True)]
    lines += [
        f"PartitionName={MAIN_PARTITION} Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE"
        f" GraceTime={options.grace_time_s} MaxTime=1-00:00:00 DefaultTime=00:30:00",
        f"PartitionName={URGENT_PARTITION} Nodes=ALL Default=NO State=UP PriorityTier=10 PreemptMode=OFF"
        " MaxTime=1-00:00:00 DefaultTime=00:30:00",
        f"PartitionName={SPOT_PARTITION} Nodes=ALL Default=NO State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=0"
        " MaxTime=UNLIMITED DefaultTime=00:30:00",
    ]
    return "\n".join(lines) + "\n"


def gres_conf(folder: Path) -> str:
    """Return gres.conf: the GPUs of each node are device files of ``folder``."""
    devices = f"{folder}/nvidia[0-{GPUS_PER_NODE - 1}]"
    return f"NodeName=node[1-{NUM_NODES}] Name=gpu Type=a100 File={devices}\n"


def cgroup_conf(options: ClusterOptions) -> str:
    """Return cgroup.conf for a machine with cgroup v1; of the limits, that on memory may be enforced."""
    memory = "yes" if options.memory_limits else "no"
    return f"CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\nConstrainRAMSpace={memory}\n"


def slurmdbd_conf(folder: Path, ports: ClusterPorts) -> str:
    """Return slurmdbd.conf; where MariaDB's socket is, is told by the variable MYSQL_UNIX_PORT."""
    return "\n".join(
        [
            "AuthType=auth/munge",
            f"AuthInfo=socket={folder}/munge/socket",
            "DbdHost=localhost",
            "DbdAddr=127.0.0.1",
            f"DbdPort={ports.database}",
            "SlurmUser=root",
            f"PidFile={folder}/slurmdbd.pid",
            f"LogFile={folder}/slurmdbd.log",
            "StorageType=accounting_storage/mysql",
            "StorageHost=localhost",
            "StorageUser=root",
            "StorageLoc=slurm_acct_db",
            "",
        ]
    )
