"""The accounting of a test cluster: a throw-away MariaDB, and the accounts and QOS in it."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

from .configuration import ACCOUNT, CANCELLED_QOS, CLUSTER_NAME, REQUEUED_QOS, URGENT_QOS
from .machine import SEARCH_PATH

# Small and careless: the data of a test may be lost with the machine.
MARIADB_TUNING = (
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=4M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
)

# What sacctmgr is told, in this order, before the controller starts.
ACCOUNTS = (
    f"add cluster {CLUSTER_NAME}",
    f"add account {ACCOUNT} Cluster={CLUSTER_NAME}",
    "add qos boost_qos_dbg set MaxTRESPerJob=node=2 MaxWall=00:30:00 MaxSubmitJobsPerUser=2 Flags=DenyOnLimit",
    "add qos boost_qos_lprod set MaxWall=4-00:00:00 Flags=PartitionTimeLimit",
    f"modify account {ACCOUNT} set qos=normal,boost_qos_dbg,boost_qos_lprod",
    f"add user root Account={ACCOUNT} DefaultAccount={ACCOUNT}",
    f"modify user root set DefaultAccount={ACCOUNT}",
)


def preempting_qos(grace_s: int) -> tuple[str, ...]:
    """Return what sacctmgr is told besides where the QOS decides who preempts whom.

    Jobs of ``express`` preempt those of ``scavenger``, which are requeued, and of ``spare``, which are cancelled.

    Args:
        grace_s: Seconds from the notice to the end of their jobs.
    """
    return (
        f"add qos {REQUEUED_QOS} set PreemptMode=requeue GraceTime={grace_s}",
        f"add qos {CANCELLED_QOS} set PreemptMode=cancel GraceTime={grace_s}",
        f"add qos {URGENT_QOS} set Preempt={REQUEUED_QOS},{CANCELLED_QOS}",
        f"modify account {ACCOUNT} set qos+={REQUEUED_QOS},{CANCELLED_QOS},{URGENT_QOS}",
    )


def prepare(folder: Path) -> list[str]:
    """Create an empty database in a new folder; return the call of its server, which opens ``folder/socket``."""
    user = pwd.getpwnam("mysql")
    for each in (folder, folder / "tmp"):
        each.mkdir(mode=0o755)
        os.chown(each, user.pw_uid, user.pw_gid)
    # A server that starts removes all temporary tables of its tmpdir, other servers' too.
    places = [f"--datadir={folder}/data", f"--tmpdir={folder}/tmp"]
    common = ["--no-defaults", *places, "--user=mysql", *MARIADB_TUNING]
    subprocess.run(
        ["mariadb-install-db", *common, "--auth-root-authentication-method=normal", "--skip-test-db"],
        env={"PATH": SEARCH_PATH},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=300,
    )
    return ["mariadbd", *common, "--skip-networking", f"--socket={folder}/socket"]
