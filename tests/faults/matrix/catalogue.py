"""All scenarios, by the rows of the fault matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import by_qos, checkpoints, nodes, owners, preemption, processes, scheduler, signals, together
from .lab import Lab
from .observation import Observation


@dataclass(frozen=True)
class Scenario:
    """One fault, and how it is played."""

    row: int
    fault: str
    play: Callable[[Lab], Observation]
    quick: bool = False
    """Whether ``make test`` plays it."""

    @property
    def name(self) -> str:
        """Its name on the command line and in the file of outcomes."""
        return self.play.__name__


SCENARIOS = (
    Scenario(1, "preempted, 60 s of grace", preemption.with_grace, quick=True),
    Scenario(1, "the same, going on by requeue", preemption.with_grace_by_requeue),
    Scenario(1, "preempted by QOS, 30 s of grace", by_qos.by_qos),
    Scenario(2, "preempted, the site sends the job's own signal", preemption.user_signal, quick=True),
    Scenario(2, "the same, a template without B:", preemption.signal_to_steps),
    Scenario(2, "both", preemption.user_signal_to_steps),
    Scenario(3, "preempted, no grace", preemption.without_grace, quick=True),
    Scenario(3, "SIGKILL of a rank", processes.rank_killed),
    Scenario(3, "SIGKILL of all ranks by scancel", processes.step_killed),
    Scenario(3, "SIGKILL of the supervisor", processes.supervisor_killed),
    Scenario(3, "the same, a link waits", processes.supervisor_of_a_chain_killed, quick=True),
    Scenario(4, "preemption cancels the job, no grace", preemption.cancelled_partition, quick=True),
    Scenario(4, "preemption by QOS cancels the job, 30 s of grace", by_qos.by_qos_that_cancels),
    Scenario(4, "the same, the ranks do nothing in 10 s of grace", by_qos.by_qos_to_the_end_of_its_grace, quick=True),
    Scenario(4, "preemption by QOS cancels the job, no grace", by_qos.by_qos_without_grace),
    Scenario(5, "time limit", preemption.time_limit, quick=True),
    Scenario(5, "the same, going on by requeue", preemption.time_limit_by_requeue),
    Scenario(6, "a node is lost", nodes.node_lost, quick=True),
    Scenario(6, "the batch host is lost", nodes.batch_host_lost, quick=True),
    Scenario(7, "slurmd restarts", nodes.slurmd_restarted),
    Scenario(8, "the job's memory is full", nodes.memory_full, quick=True),
    Scenario(9, "ENOSPC, EDQUOT, EROFS, EIO in a save", checkpoints.refusing_disk),
    Scenario(9, "a disk full to the last byte", checkpoints.full_disk),
    Scenario(10, "every file of the newest checkpoint damaged", checkpoints.damaged),
    Scenario(11, "SIGKILL of all ranks in a save", processes.killed_while_saving),
    Scenario(11, "SIGKILL of rank 1 in a save", processes.one_killed_while_saving),
    Scenario(11, "SIGSTOP of rank 1 in a save", processes.stopped_while_saving),
    Scenario(12, "SIGTERM reaches the ranks 0.3, 0.8, 1.7 s apart", signals.skewed),
    Scenario(13, "a warning by hand", signals.by_hand),
    Scenario(13, "a second warning in the save", signals.twice_while_saving),
    Scenario(13, "a warning while the data is prepared", signals.while_preparing),
    Scenario(13, "a warning while the model is loaded", signals.while_loading),
    Scenario(13, "a warning in an evaluation", signals.while_evaluating),
    Scenario(14, "every flush takes a second", checkpoints.slow_disk),
    Scenario(14, "ESTALE in the save before a stop, twice", checkpoints.gone_at_the_last_save),
    Scenario(14, "the same, for the whole notice", checkpoints.gone_for_the_whole_notice),
    Scenario(15, "slurmctld down at submit and status", scheduler.down_at_submit_and_status, quick=True),
    Scenario(15, "slurmctld down when the run is to go on", scheduler.down_at_continuation, quick=True),
    Scenario(16, "slurmctld hangs 14 and 60 s at submit", scheduler.hangs_at_submit),
    Scenario(16, "slurmctld hangs at status", scheduler.hangs_at_status),
    Scenario(17, "slurmctld forgets a job, its id is used again", scheduler.id_used_twice, quick=True),
    Scenario(18, "slurmdbd down", scheduler.accounting_down),
    Scenario(18, "slurmdbd down at submit, preemption by QOS cancels the job", by_qos.by_qos_of_rules_unknown),
    Scenario(18, "no accounting, the job is purged", scheduler.purged),
    Scenario(19, "two jobs on one run", owners.two_jobs, quick=True),
    Scenario(19, "a successor and Slurm's requeue at once", owners.successor_and_requeue, quick=True),
    Scenario(19, "one run submitted by two terminals at once", owners.submitted_twice),
    Scenario(20, "the loss is not finite", owners.loss_not_finite),
    Scenario(21, "a rank hangs", processes.rank_hangs, quick=True),
    Scenario(21, "the preparation of the data hangs", processes.preparation_hangs),
    Scenario(22, "a rank is slow", processes.rank_slow),
    Scenario(23, "a node has lost its GPU", nodes.gpu_lost),
    Scenario(24, "2, then 1, then 2 ranks", owners.other_world_size),
    Scenario(25, "another learning rate at resume", owners.other_recipe),
    Scenario(26, "another version of a library at resume", owners.other_library),
    Scenario(27, "the older checkpoint has the newer times", checkpoints.wrong_times),
    Scenario(28, "every attempt dies before a checkpoint", owners.no_progress),
    Scenario(29, "the log of a requeued job", preemption.log_of_a_requeued_job),
    Scenario(30, "scancel in the queue", owners.cancelled_in_the_queue, quick=True),
    Scenario(30, "scancel in training", owners.cancelled_in_training, quick=True),
    Scenario(30, "scancel in the grace time", owners.cancelled_in_its_grace),
    Scenario(30, "scancel after a requeue", owners.cancelled_after_requeue, quick=True),
    Scenario(31, "preempted, a rank killed, warned, the supervisor killed, cancelled", together.one_after_the_other),
)
