"""A real Slurm of four pretended GPU nodes on this machine's loopback, for tests.

    with SlurmCluster() as cluster:
        job_id = cluster.run("sbatch", "--parsable", "--wrap", "hostname").stdout.strip()
        cluster.wait_for(lambda: cluster.job_state(job_id) == "COMPLETED", "the job to complete")

Needs root and the Debian packages that ``tools/install_test_programs.sh`` installs. Each cluster has its own key,
ports and folder, so several live side by side. What they are configured to: ``configuration.py``.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

from tests.claims import Claim, claim, claim_port
from tests.guard import Guard

from . import database, processes
from .configuration import (
    GPUS_PER_NODE,
    MAIN_PARTITION,
    URGENT_PARTITION,
    URGENT_QOS,
    ClusterOptions,
    ClusterPorts,
    cgroup_conf,
    gres_conf,
    node_names,
    slurm_conf,
    slurmdbd_conf,
)
from .machine import PORT_RANGE, SEARCH_PATH, cgroup_available, missing_reason

__all__ = ["SlurmCluster", "cgroup_available", "missing_reason"]

# One cluster uses at most this many job ids; no two clusters of one machine share an id, since under cgroup
# v1 they would share the job's cgroup too.
JOB_IDS_PER_CLUSTER = 1000
JOB_ID_BLOCKS = range(1, 60_000)  # Slurm's MaxJobId is 67,043,328


class SlurmCluster:
    """A Slurm cluster that lives as long as a ``with`` block, or from ``start`` to ``stop``.

    Four nodes ``node1`` to ``node4`` of 32 cores, 514000 MB and four pretended A100 each; a preemptible
    partition ``boost_usr_prod``, a partition ``spot`` whose jobs are cancelled without grace, and ``urgent``,
    which preempts both; the account ``demo_acc``; the QOS ``boost_qos_dbg`` (2 nodes, 30 minutes, 2 jobs a user)
    and ``boost_qos_lprod`` (4 days).

    Args:
        proctrack: How Slurm finds a job's processes; see ``ClusterOptions`` for this and all the others.
        send_user_signal: Whether preemption sends the signal the job asked for.
        accounting: Whether slurmdbd runs, and accounts and QOS are enforced.
        grace_time_s: Seconds from the preemption notice to the end of a job.
        cred_expire: Seconds a requeued job waits, less one, at least 5; None for Slurm's own 120 s.
        kill_wait_s: Seconds between SIGTERM and SIGKILL.
        min_job_age: Seconds a finished job stays known to squeue.
        message_timeout_s: Seconds a Slurm command waits for an answer.
        slurmd_timeout_s: Seconds of silence after which a node is DOWN.
        preempt_by: Whether partition or QOS decides who preempts whom; by QOS, jobs of ``express`` preempt those
            of ``scavenger``, which are requeued, and of ``spare``, which are cancelled.
        qos_grace_s: Seconds from the preemption notice to the end of a job of these two QOS.
        memory_limits: Whether a job that uses more memory than it asked for is ended.
    """

    def __init__(
        self,
        *,
        proctrack: Literal["linuxproc", "cgroup"] = "linuxproc",
        send_user_signal: bool = False,
        accounting: bool = True,
        grace_time_s: int = 30,
        cred_expire: int | None = 6,
        kill_wait_s: int = 5,
        min_job_age: int = 300,
        message_timeout_s: int = 10,
        slurmd_timeout_s: int = 20,
        preempt_by: Literal["partition", "qos"] = "partition",
        qos_grace_s: int = 60,
        memory_limits: bool = False,
    ) -> None:
        self.options = ClusterOptions(
            proctrack=proctrack,
            send_user_signal=send_user_signal,
            accounting=accounting,
            grace_time_s=grace_time_s,
            cred_expire_s=cred_expire,
            kill_wait_s=kill_wait_s,
            min_job_age_s=min_job_age,
            message_timeout_s=message_timeout_s,
            slurmd_timeout_s=slurmd_timeout_s,
            preempt_by=preempt_by,
            qos_grace_s=qos_grace_s,
            memory_limits=memory_limits,
        )
        self.folder = Path()
        self.conf = Path()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._guard: Guard | None = None
        self._claims: list[Claim] = []
        self.job_ids = range(0)
        self._owner = 0

    # --- life -----------------------------------------------------------------------------------------------

    def __enter__(self) -> SlurmCluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start all daemons and return when the nodes are idle; after a failure nothing is left running."""
        # A short path, since a Unix socket's may have no more than 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.conf = self.folder / "slurm.conf"
        self._guard = Guard("SLURM_CONF", str(self.conf), self.folder)
        self._owner = os.getpid()
        atexit.register(self.stop)
        try:
            self._write_files()
            if self.options.accounting:
                self._start_database_server()
            self._start_munge()
            if self.options.accounting:
                self._start_accounting()
            self._start_daemon("slurmctld", ["slurmctld", "-D"])
            for node in node_names():
                self.start_node(node)
            self.wait_for(self._all_nodes_idle, "the nodes to become idle")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of this cluster, jobs included, and remove its folder; twice is no error."""
        # A forked child of the tests must not end its parent's cluster at its own exit.
        if self._guard is None or self._owner != os.getpid():
            return
        for name in reversed(list(self._daemons)):
            processes.end_daemon(self._daemons.pop(name))
        processes.kill_until_gone(self.folder, self.conf)
        for node in node_names():
            processes.remove_cgroups(node, self.job_ids)
        self._guard.dismiss()
        self._guard = None
        while self._claims:
            self._claims.pop().release()
        atexit.unregister(self.stop)
        processes.remove_folder(self.folder)

    def processes_left(self) -> set[int]:
        """Return the processes that belong to this cluster, whether it runs or has been stopped."""
        return processes.cluster_processes(self.folder, self.conf)

    # --- commands and jobs ----------------------------------------------------------------------------------

    def env(self) -> dict[str, str]:
        """Return the environment of Slurm commands for this cluster: SLURM_CONF and PATH, no more."""
        return {"SLURM_CONF": str(self.conf), "PATH": SEARCH_PATH}

    def run(self, *argv: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster; its exit status is the caller's to look at."""
        return subprocess.run(
            list(argv),
            env=self.env(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=self.folder,
            check=False,
        )

    def submit(self, *arguments: str) -> str:
        """Submit a job with ``sbatch`` and return its id.

        Raises:
            RuntimeError: Slurm refused it.
        """
        answer = self.run("sbatch", "--parsable", *arguments)
        if answer.returncode != 0:
            raise RuntimeError(f"sbatch {' '.join(arguments)}: {answer.stderr}")
        return answer.stdout.strip().partition(";")[0]

    def urgent_job(self, *, nodes: int | str = 1, seconds: float = 3600) -> str:
        """Submit a job that takes whole nodes and preempts what runs there; return its id.

        Args:
            nodes: How many nodes, or which, as ``node1,node2``.
            seconds: How long it sleeps there.
        """
        where = f"--nodes={nodes}" if isinstance(nodes, int) else f"--nodelist={nodes}"
        by_qos = (f"--partition={MAIN_PARTITION}", f"--qos={URGENT_QOS}")
        return self.submit(
            *(by_qos if self.options.preempt_by == "qos" else (f"--partition={URGENT_PARTITION}",)),
            "--exclusive",
            where,
            f"--gres=gpu:{GPUS_PER_NODE}",
            "--job-name=urgent",
            "--output=/dev/null",
            f"--wrap=exec sleep {seconds}",
        )

    def job_state(self, job_id: str) -> str:
        """Return Slurm's long state of a job, as PENDING; empty if the controller does not know it."""
        answer = self.run("squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T")
        return answer.stdout.strip() if answer.returncode == 0 else ""

    def user_processes(self, job_id: str) -> dict[int, str]:
        """Return what a job runs, srun included and slurmstepd not: the command line of each process."""
        found = {}
        for pid in processes.all_pids():
            environment = processes.environment_of(pid)
            own = environment.get("SLURM_CONF") == str(self.conf) and environment.get("SLURM_JOB_ID") == job_id
            line = processes.command_line(pid) if own else ""
            if line and not line.startswith("slurmstepd"):
                found[pid] = line
        return found

    def wait_for(self, predicate: Callable[[], object], description: str, timeout_s: float = 120) -> None:
        """Poll until the predicate is true.

        Args:
            predicate: Asked ten times a second.
            description: What is waited for, for the error's text.
            timeout_s: Seconds until this gives up.

        Raises:
            TimeoutError: It did not come true; the text shows the queue and the end of the controller's log.
        """
        deadline = time.monotonic() + timeout_s
        while not predicate():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_s:g} s for {description}\n{self._picture()}")
            time.sleep(0.1)

    # --- faults ---------------------------------------------------------------------------------------------

    def stop_controller(self) -> None:
        """End slurmctld as an admin would; running jobs go on."""
        processes.end_daemon(self._daemons.pop("slurmctld"), patience_s=20)

    def crash_controller(self, *, forgetting: Callable[[], None] | None = None) -> None:
        """End slurmctld at once, with what it has not written.

        Args:
            forgetting: What happens shortly before, of which the controller will know nothing when it comes back.
        """
        state, before = self.folder / "state", self.folder / "state-before"
        if forgetting is not None:
            shutil.copytree(state, before)
            forgetting()
        processes.end_daemon(self._daemons.pop("slurmctld"))
        if forgetting is not None:
            shutil.rmtree(state)
            before.rename(state)

    def start_controller(self) -> None:
        """Start slurmctld again and return when it answers."""
        self._start_daemon("slurmctld", ["slurmctld", "-D"])
        self.wait_for(lambda: self.run("scontrol", "ping").returncode == 0, "the controller to answer")

    @property
    def controller_pid(self) -> int:
        """The process of slurmctld."""
        return self._daemons["slurmctld"].pid

    def pause_controller(self) -> None:
        """Let slurmctld hang: connections are taken by the kernel, answers do not come."""
        self._daemons["slurmctld"].send_signal(signal.SIGSTOP)

    def resume_controller(self) -> None:
        """Let a paused slurmctld go on; it then works off what it was sent meanwhile."""
        self._daemons["slurmctld"].send_signal(signal.SIGCONT)

    def stop_database(self) -> None:
        """End slurmdbd: sacct fails from now on, jobs go on."""
        processes.end_daemon(self._daemons.pop("slurmdbd"), patience_s=10)

    def start_database(self) -> None:
        """Start slurmdbd again and return when it answers."""
        self._start_daemon("slurmdbd", ["slurmdbd", "-D"])
        self.wait_for(self._database_answers, "slurmdbd to answer")

    def pause_database(self) -> None:
        """Let slurmdbd hang: it takes connections and does not answer."""
        self._daemons["slurmdbd"].send_signal(signal.SIGSTOP)

    def resume_database(self) -> None:
        """Let a paused slurmdbd go on."""
        self._daemons["slurmdbd"].send_signal(signal.SIGCONT)

    def start_node(self, node: str) -> None:
        """Start the slurmd of one node; its GPUs and name are as before."""
        self._start_daemon(f"slurmd-{node}", ["slurmd", "-D", "-N", node])

    def restart_slurmd(self, node: str) -> None:
        """End the slurmd of a node and start it again; its slurmstepds and their jobs go on."""
        processes.end_daemon(self._daemons.pop(f"slurmd-{node}"), patience_s=10)
        self.start_node(node)

    def kill_node(self, node: str) -> None:
        """Lose a node at once: its slurmd, its slurmstepds and all that its jobs run there."""
        daemon = self._daemons.pop(f"slurmd-{node}")
        steps = processes.with_descendants(processes.owners_of_sockets(self.folder / "spool" / node))
        processes.end_daemon(daemon)
        for pid in steps - {daemon.pid}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # A killed process is there until it is scheduled once more.
        self.wait_for(lambda: not {pid for pid in steps if processes.is_alive(pid)}, f"the processes of {node} to end")

    # --- start-up -------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        # The user mysql must be able to pass through.
        self.folder.chmod(0o755)
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(mode=0o755)
        for number in range(GPUS_PER_NODE):
            # Slurm sets CUDA_VISIBLE_DEVICES only for device files, so these are further names of /dev/null.
            os.mknod(self.folder / f"nvidia{number}", stat.S_IFCHR | 0o666, Path("/dev/null").stat().st_rdev)
        ports = self._claim_ports()
        first = self._claimed(claim("slurm-job-ids", JOB_ID_BLOCKS)) * JOB_IDS_PER_CLUSTER
        self.job_ids = range(first, first + JOB_IDS_PER_CLUSTER)
        hostname = socket.gethostname().partition(".")[0]
        self.conf.write_text(
            slurm_conf(self.folder, self.options, ports, hostname=hostname, first_job_id=first),
            encoding="utf-8",
        )
        (self.folder / "gres.conf").write_text(gres_conf(self.folder), encoding="utf-8")
        if self.options.proctrack == "cgroup":
            (self.folder / "cgroup.conf").write_text(cgroup_conf(self.options), encoding="utf-8")
        if self.options.accounting:
            database_conf = self.folder / "slurmdbd.conf"
            database_conf.touch(mode=0o600)
            database_conf.write_text(slurmdbd_conf(self.folder, ports), encoding="utf-8")

    def _claim_ports(self) -> ClusterPorts:
        """Return ports that are this cluster's until it stops, also while a daemon of it is down."""
        controller, database_port, *nodes = (
            self._claimed(claim_port(PORT_RANGE)) for _ in range(2 + len(node_names()))
        )
        return ClusterPorts(controller=controller, database=database_port, nodes=tuple(nodes))

    def _claimed(self, claimed: Claim) -> int:
        self._claims.append(claimed)
        return claimed.number

    def _start_munge(self) -> None:
        munge = self.folder / "munge"
        (munge / "key").touch(mode=0o600)
        (munge / "key").write_bytes(os.urandom(1024))
        files = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        options = [f"--{option}={munge / name}" for option, name in files.items()]
        self._start_daemon("munged", ["munged", "--foreground", "--force", *options])
        self.wait_for((munge / "socket").exists, "munged to open its socket")

    def _start_database_server(self) -> None:
        argv = database.prepare(self.folder / "db")
        self._start_daemon("mariadbd", argv)

    def _start_accounting(self) -> None:
        self.wait_for((self.folder / "db" / "socket").exists, "MariaDB to open its socket")
        self._start_daemon("slurmdbd", ["slurmdbd", "-D"])
        self.wait_for(self._database_answers, "slurmdbd to answer")
        by_qos = self.options.preempt_by == "qos"
        for words in (*database.ACCOUNTS, *(database.preempting_qos(self.options.qos_grace_s) if by_qos else ())):
            answer = self.run("sacctmgr", "--immediate", *words.split())
            if answer.returncode != 0:
                raise RuntimeError(f"sacctmgr {words}: {answer.stdout}{answer.stderr}")

    def _start_daemon(self, name: str, argv: list[str]) -> None:
        env = self.env() | {"MYSQL_UNIX_PORT": f"{self.folder}/db/socket"}
        daemon = processes.start_daemon(argv, env, self.folder / f"{name}.out")
        self._daemons[name] = daemon
        assert self._guard is not None
        self._guard.watch(daemon.pid)

    def _database_answers(self) -> bool:
        return self.run("sacctmgr", "--noheader", "show", "cluster").returncode == 0

    def _all_nodes_idle(self) -> bool:
        answer = self.run("sinfo", "--noheader", "--Node", "--partition=urgent", "--format=%T")
        return answer.stdout.split() == ["idle"] * len(node_names())

    def _picture(self) -> str:
        """Return what helps to see why something did not happen."""
        queue = self.run("squeue", "--states=all", "--format=%i|%j|%T|%r|%P|%N|%S")
        nodes = self.run("sinfo", "--Node", "--format=%N %T %E")
        parts = [queue.stdout + queue.stderr, nodes.stdout + nodes.stderr]
        for log in (self.folder / "slurmctld.log", self.folder / "slurmdbd.log"):
            if log.exists():
                parts.append(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-30:]))
        for name, daemon in self._daemons.items():
            if daemon.poll() is not None:
                output = (self.folder / f"{name}.out").read_text(errors="replace")
                parts.append(f"--- {name} ended with {daemon.returncode}\n{output[-2000:]}")
        return "\n".join(parts)
