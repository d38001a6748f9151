"""The only file that runs Slurm's commands."""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from hpcgemma.errors import InputError, SchedulerError
from hpcgemma.slurm import commands, orders, qos, refusals
from hpcgemma.slurm.qos import Qos
from hpcgemma.slurm.records import JobDetails, JobRecord, NodeGroup
from hpcgemma.slurm.refusals import OrderRefused, SubmitRefused, SubmitTimeout
from hpcgemma.slurm.site import Partition, Site, partition_of, site_of

__all__ = ["OrderRefused", "SlurmClient", "SubmitRefused", "SubmitTimeout", "clean_environment"]

# What changes what Slurm's commands do or print: from the user's shell, or from the job we are inside of.
_LEAKING = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SCONTROL_")
_KEPT = ("SLURM_CONF",)

# Before any Slurm job: sacct must be given some start, or it looks at today only.
_LONG_AGO = datetime(2000, 1, 1)

PATIENCE_S = 30.0
"""For which a command that submits asks again: a controller that restarts, or hangs for a moment, is back by then."""
_BETWEEN_QUESTIONS_S = 1.0


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which Slurm's commands do what their arguments say.

    ``SBATCH_*`` would override the script's ``#SBATCH`` lines, and inside a job ``SLURM_*`` would leak its
    shape into the next one. ``SLURM_CONF`` stays: it says which cluster is meant.
    """
    return {name: value for name, value in environment.items() if name in _KEPT or not name.startswith(_LEAKING)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What a command printed; ``complete`` is False when it was ended because it took too long."""

    succeeded: bool
    output: str
    complaint: str
    complete: bool


class SlurmClient:
    """Asks Slurm and tells it what to do, with the environment of the caller.

    Args:
        timeout_s: Seconds a command may take. Slurm's own (MessageTimeout, 10 s by default) should come
            first.
        accounting_timeout_s: Seconds sacctmgr may take, whose answer can be done without: slurmdbd may hang while
            the controller answers.
        patience_s: Seconds for which a question is asked again while Slurm is silent.
        on_silence: Told once, in a sentence, that Slurm is asked again.

    Attributes:
        accounting_problem: Why the last look into the accounting failed; empty if it worked or none was
            needed.
    """

    def __init__(
        self,
        timeout_s: float = 60,
        *,
        accounting_timeout_s: float = 10,
        patience_s: float = 0,
        on_silence: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.timeout_s = timeout_s
        self._accounting_timeout_s = accounting_timeout_s
        self._patience_s, self._on_silence = patience_s, on_silence
        self._silence_is_told = False
        self.accounting_problem = ""
        self._accounting_disabled = False

    # --- questions ------------------------------------------------------------------------------------------

    def jobs(self, job_ids: Iterable[str], *, since: datetime = _LONG_AGO) -> dict[str, JobRecord]:
        """Return what Slurm knows of these jobs; one it does not know is missing in the answer.

        One squeue call for all, and one sacct call for those that squeue has forgotten. Missing does not mean
        ended: the accounting may be off or lag behind (see ``accounting_problem``).

        Args:
            job_ids: Any number of ids.
            since: No job older than this is looked up in the accounting.

        Raises:
            InputError: A text is no job id.
            SchedulerError: The controller does not answer.
        """
        wanted = list(dict.fromkeys(job_ids))
        _check_job_ids(wanted)
        self.accounting_problem = ""
        if not wanted:
            return {}
        found = {record.job_id: record for record in self._squeue(wanted)}
        if forgotten := [job_id for job_id in wanted if job_id not in found]:
            for record in self._sacct(since=since, job_ids=forgotten):
                found[record.job_id] = record
        return {job_id: found[job_id] for job_id in wanted if job_id in found}

    def attempts(self, job_id: str, *, since: datetime = _LONG_AGO) -> list[JobRecord]:
        """Return each run of a requeued job, the oldest first; empty where there is no accounting."""
        _check_job_ids([job_id])
        self.accounting_problem = ""
        records = self._sacct(since=since, job_ids=[job_id], every_attempt=True)
        return sorted(records, key=lambda record: record.submit_time or _LONG_AGO)

    def my_jobs(self) -> list[JobRecord]:
        """Return the caller's jobs that are queued, running, or ended a few minutes ago."""
        return self._squeue(None)

    def find_by_comment(self, comment: str) -> list[JobRecord]:
        """Return the caller's jobs with exactly this comment: from squeue, and the accounting's last day.

        The accounting knows comments only of ended jobs, and only where the site stores them. A submission that was
        refused can leave a FAILED job behind that squeue shows for some minutes; such ones are left out.
        """
        found = {record.job_id: record for record in self._squeue(None)}
        self.accounting_problem = ""
        for record in self._sacct(since=datetime.now() - timedelta(days=1), uid=os.getuid()):
            found.setdefault(record.job_id, record)
        return [
            record
            for record in found.values()
            if record.comment == comment and (record.state, record.reason) != ("FAILED", "BadConstraints")
        ]

    def partition(self, name: str) -> list[NodeGroup]:
        """Return the nodes of a partition in groups of alike ones; none if there is no such partition."""
        return commands.parse_sinfo(self._ask(commands.sinfo_argv(name)).output)

    def show_job(self, job_id: str) -> JobDetails | None:
        """Return all that the controller knows of a job; None if it does not know it (any more)."""
        _check_job_ids([job_id])
        answer = self._ask(commands.show_job_argv(job_id), expected=("unknown job",))
        return commands.parse_show_job(answer.output)

    def steps(self, job_id: str) -> list[str]:
        """Return the steps of a running job that srun has started, as ``1234.0``, oldest first."""
        _check_job_ids([job_id])
        return commands.parse_steps(self._ask(commands.steps_argv(job_id), expected=("unknown job",)).output)

    def config(self) -> dict[str, str]:
        """Return the site's configuration, as ``{"JobRequeue": "1", …}``."""
        return commands.parse_show_config(self._ask(commands.show_config_argv()).output)

    def site(self) -> Site:
        """Return how this cluster treats jobs, as its configuration says.

        Raises:
            SchedulerError: Slurm is not there, or does not answer.
        """
        return site_of(self.config())

    def partitions(self) -> list[Partition]:
        """Return how each partition treats its jobs."""
        answer = self._ask(commands.show_partitions_argv())
        return [partition_of(each) for each in commands.parse_show_partitions(answer.output)]

    def all_qos(self) -> list[Qos] | None:
        """Return how jobs of each QOS are preempted; None where the accounting does not answer, or is not there."""
        output = self._sacctmgr(qos.show_qos_argv())
        return None if output is None else [qos.qos_of(each) for each in qos.parse_show_qos(output)]

    def default_qos(self, cluster: str, account: str | None, partition: str) -> str | None:
        """Return the QOS of the caller's jobs that ask for none; None where the accounting does not answer.

        Args:
            cluster: Name of the cluster, which may be one of several in the accounting.
            account: The job's; None for the caller's default.
            partition: The job's.
        """
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:  # no name for this number on this machine
            return None
        output = self._sacctmgr(qos.associations_argv(user))
        if output is None:
            return None
        found = qos.parse_associations(output)
        return qos.default_qos(found, cluster=cluster, account=account, partition=partition)

    def known_nodes(self, nodes: Sequence[str]) -> list[str]:
        """Return those of some nodes that the cluster has, in their order."""
        if not nodes:
            return []
        found = self._ask(commands.known_nodes_argv(nodes)).output.split()
        return [node for node in nodes if node in found]

    def objection(self, script_path: Path | str, exclude: Sequence[str]) -> str:
        """Return why a script could never run without some nodes, in Slurm's words; empty where it could.

        Any other complaint, as that no job may be submitted from here, says nothing of the nodes.
        """
        argv = orders.sbatch_argv(Path(script_path), exclude=exclude, test_only=True)
        answer = self._run(argv, clean_environment(os.environ))
        refused = not answer.succeeded and refusals.lacks_nodes(answer.complaint)
        return refusals.own_words(answer.complaint) if refused else ""

    # --- orders ---------------------------------------------------------------------------------------------

    def submit(
        self,
        script_path: Path | str,
        *,
        dependency: str | None = None,
        signal: str | None = None,
        exclude: Sequence[str] = (),
    ) -> str:
        """Submit a job script, once, and return the job's id.

        Args:
            script_path: The script; it is submitted from the present folder.
            dependency: The id of a job that must have ended before, however it ended; or a condition in
                Slurm's words.
            signal: The warning in the place of the script's, in sbatch's form.
            exclude: Nodes that the job is not to have, in the place of the script's; none: those of the script.

        Raises:
            SubmitRefused: Slurm refused it; no job will run.
            SubmitTimeout: The answer was lost: the job may exist. Look with ``find_by_comment`` before trying
                again.
            SchedulerError: The controller could not be reached; no job exists.
        """
        argv = orders.sbatch_argv(Path(script_path), dependency, signal, exclude)
        # The job inherits this environment, so nothing that is meant for reading output goes into it.
        answer = self._run(argv, clean_environment(os.environ))
        job_id = orders.parse_sbatch(answer.output)
        if answer.succeeded and job_id is not None:
            return job_id
        failure = refusals.failure_of(answer.complaint)
        if answer.succeeded or not answer.complete or failure == "answer lost":
            raise SubmitTimeout(
                f"the answer to the submission was lost, so the job may exist ({refusals.own_words(answer.complaint)})",
                "do not submit again at once; 'squeue --me' shows whether the job is there",
            )
        if failure == "unreachable":
            raise refusals.controller_silent("sbatch", answer.complaint)
        raise refusals.refusal(answer.complaint)

    def cancel(self, job_ids: Iterable[str]) -> None:
        """Cancel jobs; one that has ended or is unknown is no error."""
        wanted = list(job_ids)
        _check_job_ids(wanted)
        if wanted:
            self._ask(orders.scancel_argv(wanted), expected=("unknown job",), harmless="already complet")

    def requeue(self, job_id: str) -> None:
        """Put a job back into the queue; a running one is ended first, a pending one stays as it is.

        Raises:
            OrderRefused: Slurm does not know the job, or requeueing is off for it or for the site.
            SchedulerError: Slurm does not answer.
        """
        _check_job_ids([job_id])
        self._ask(orders.requeue_argv(job_id), harmless="is pending execution")

    def exclude_nodes(self, job_id: str, nodes: Sequence[str]) -> None:
        """Keep a job that waits from nodes, in the place of those that it was kept from before.

        Slurm checks nothing here: with too few nodes left the job is held for ever. Ask ``objection`` before.
        """
        _check_job_ids([job_id])
        self._ask(orders.exclude_argv(job_id, nodes))

    def start_now(self, job_id: str) -> None:
        """Shorten the two minutes that a requeued job waits to five seconds; it must be pending by now.

        Not to none at all: see ``orders.SAFE_REQUEUE_WAIT_S``.
        """
        _check_job_ids([job_id])
        self._ask(orders.start_now_argv(job_id))

    def set_time_limit(self, job_id: str, minutes: int) -> None:
        """Give a job another time limit, counted from its start.

        Raises:
            OrderRefused: It is longer and the job runs, or Slurm does not know the job.
            SchedulerError: Slurm does not answer.
        """
        _check_job_ids([job_id])
        self._ask(orders.set_time_limit_argv(job_id, minutes))

    def signal_batch(self, job_id: str, signal: str) -> None:
        """Send a signal, by its name without SIG, to a job's batch script; KILL ends the job as FAILED.

        Raises:
            OrderRefused: Slurm does not know the job, or it is not running.
            SchedulerError: Slurm does not answer.
        """
        _check_job_ids([job_id])
        self._ask(orders.signal_batch_argv(job_id, signal))

    def signal_step(self, step_id: str, signal: str) -> None:
        """Send a signal, by its name without SIG, to the ranks of a step.

        Raises:
            OrderRefused: There is no such step.
            SchedulerError: Slurm does not answer.
        """
        self._ask(orders.signal_step_argv(step_id, signal))

    # --- running --------------------------------------------------------------------------------------------

    def _squeue(self, job_ids: Sequence[str] | None) -> list[JobRecord]:
        # Alone, an unknown id is an error; among others it is left out silently (22.05.8).
        answer = self._ask(commands.squeue_argv(job_ids), expected=("unknown job",))
        return commands.parse_squeue(answer.output)

    def _sacct(
        self,
        *,
        since: datetime,
        job_ids: Sequence[str] | None = None,
        uid: int | None = None,
        every_attempt: bool = False,
    ) -> list[JobRecord]:
        """Return the accounting's records; none, and the reason remembered, where it does not work."""
        if self._accounting_disabled:
            self.accounting_problem = "Slurm accounting storage is disabled"
            return []
        argv = commands.sacct_argv(since=since, job_ids=job_ids, uid=uid, every_attempt=every_attempt)
        try:
            answer = self._run(argv, _reading_environment())
        except SchedulerError as error:
            self.accounting_problem = error.problem
            return []
        if not answer.succeeded:
            self.accounting_problem = refusals.own_words(answer.complaint)
            self._accounting_disabled = refusals.failure_of(answer.complaint) == "accounting disabled"
            return []
        return commands.parse_sacct(answer.output)

    def _sacctmgr(self, argv: list[str]) -> str | None:
        try:
            answer = self._run(argv, _reading_environment(), timeout_s=self._accounting_timeout_s)
        except SchedulerError:
            return None
        return answer.output if answer.succeeded else None

    def _ask(self, argv: list[str], *, expected: tuple[refusals.Failure, ...] = (), harmless: str = "") -> _Answer:
        """Run a command that must succeed, save for the failures that are expected or harmless."""
        deadline = time.monotonic() + self._patience_s
        while True:
            answer = self._run(argv, _reading_environment())
            if answer.succeeded or (harmless and harmless in answer.complaint.lower()):
                return answer
            failure = refusals.failure_of(answer.complaint)
            if answer.complete and failure not in ("unreachable", "answer lost"):
                break
            if time.monotonic() > deadline:
                raise refusals.controller_silent(argv[0], answer.complaint)
            if not self._silence_is_told:
                self._silence_is_told = True
                self._on_silence(
                    f"Slurm's controller does not answer '{argv[0]}'; asking again, for {self._patience_s:g} s at most"
                )
            time.sleep(_BETWEEN_QUESTIONS_S)
        if failure in expected:
            return answer
        called = " ".join(argv[:3])
        raise OrderRefused(
            f"Slurm's command '{called}' failed: {refusals.own_words(answer.complaint)}",
            "check the job id with 'squeue --me'; if the command is refused, the site's support can tell why",
        )

    def _run(self, argv: list[str], environment: Mapping[str, str], *, timeout_s: float | None = None) -> _Answer:
        timeout_s = min(timeout_s or self.timeout_s, self.timeout_s)
        try:
            done = subprocess.run(
                argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except FileNotFoundError:
            raise refusals.command_missing(argv[0]) from None
        except subprocess.TimeoutExpired:
            complaint = f"no answer within {timeout_s:g} s"
            return _Answer(succeeded=False, output="", complaint=complaint, complete=False)
        # A command that a signal ended has not said its last word: Slurm signals a job's every process.
        complete = done.returncode >= 0
        complaint = done.stderr if complete else f"{argv[0]} was ended by signal {-done.returncode}"
        return _Answer(succeeded=done.returncode == 0, output=done.stdout, complaint=complaint, complete=complete)


def _reading_environment() -> dict[str, str]:
    """Return the environment for commands whose output is read: English, times in the standard form."""
    return clean_environment(os.environ) | {"LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}


def _check_job_ids(job_ids: Iterable[str]) -> None:
    for job_id in job_ids:
        if not commands.is_job_id(job_id):
            raise InputError(f"{job_id!r} is not a Slurm job id", "give a number, as 'squeue --me' shows it")
