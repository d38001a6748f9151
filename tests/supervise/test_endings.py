from __future__ import annotations

import signal
from typing import Any

import pytest

from hpcgemma.supervise.endings import (
    Ending,
    EndingKind,
    NextMove,
    attempts_without_progress,
    classify,
    next_move,
    save_problem,
)
from hpcgemma.supervise.launchers import RankExit

CLEAN = [RankExit(0, 0, None), RankExit(1, 0, None)]
KILLED = [RankExit(1, None, signal.SIGKILL)]


def failed(kind: str, sentence: str = "why", **more: Any) -> dict[str, Any]:
    return {"outcome": "failed", "kind": kind, "sentence": sentence, "hint": "do", "rank": 0, "step": 3, **more}


def test_ranks_that_finished_are_finished() -> None:
    ending = classify(CLEAN, {"outcome": "finished", "step": 9}, warned=False)
    assert ending == Ending(kind=EndingKind.FINISHED, sentence="finished at step 9", step=9)


def test_a_graceful_save_names_its_signal() -> None:
    ending = classify(CLEAN, {"outcome": "stopped", "step": 9, "signal": "SIGTERM"}, warned=False)
    assert ending == Ending(kind=EndingKind.STOPPED, sentence="saved at step 9 after SIGTERM", step=9)


def test_a_killed_rank_is_named_with_its_signal() -> None:
    ending = classify(KILLED, None, warned=False)
    assert (ending.kind, ending.sentence) == (EndingKind.RANK_DIED, "rank 1 was killed by SIGKILL")


def test_a_shells_code_for_a_signal_counts_as_the_signal() -> None:
    ending = classify([RankExit(None, 137, None)], None, warned=False)
    assert ending.sentence == "a rank was killed by SIGKILL"


def test_a_survivors_complaint_about_a_lost_peer_is_not_the_cause() -> None:
    said = failed("peer_lost", "another rank is gone")
    assert classify(KILLED, said, warned=False).sentence == "rank 1 was killed by SIGKILL"
    alone = classify([RankExit(0, 1, None)], said, warned=False)
    assert alone.kind is EndingKind.COMMUNICATION
    assert alone.sentence == "a rank lost its peers: another rank is gone"


OOM_22_05 = """\
slurmstepd: error: Detected 1 oom-kill event(s) in StepId=41.0. Some of your processes may have been killed by the \
cgroup out-of-memory handler.
srun: error: fn2: task 1: Out Of Memory
"""
OVER_LIMIT_22_05 = """\
srun: error: node2: task 1: Killed
slurmstepd-node1: error: StepId=41.3 exceeded memory limit (314761216 > 314572800), being killed
"""
"""Recorded on Slurm 22.05 with JobAcctGatherParams=OverMemoryKill."""
OOM_23_11 = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=41.0. Some of the step tasks have been OOM Killed.\n"
)
WORKER = "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Killed. \n"
SHM = (
    "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that dataloader's "
    "workers are out of shared memory. Please try to raise your shared memory limit.\n"
)
ALLOCATOR = "RuntimeError: [enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory\n"
ECC = "terminate called after throwing\n  what():  CUDA error: uncorrectable ECC error encountered\n"
BUS = "RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable\n"
CUDA_OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
NODE = (
    "slurmstepd: error: *** STEP 41.0 ON fn2 CANCELLED AT 2026-11-20T12:00:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG "
    "FOR DETAILS ***\n"
)
WATCHDOG = (
    "[rank1]:[E1120 12:00:00 ProcessGroupNCCL.cpp:685] [Rank 1] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=42, OpType=ALLREDUCE) ran for 1800000 milliseconds before timing out.\n"
)
NCCL = (
    "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3690, remote process exited or there was "
    "a network error, NCCL version 2.27.5\n"
)
STALE = "OSError: [Errno 116] Stale file handle: '/scratch/r/prepared/tokens.npy'\n"
SIGKILL, SIGABRT = RankExit(1, None, signal.SIGKILL), RankExit(1, None, signal.SIGABRT)
CODE_1 = RankExit(1, 1, None)


@pytest.mark.parametrize(
    ("end", "log", "kind", "begin"),
    [
        (SIGKILL, OOM_22_05, EndingKind.HOST_OOM, "the node's memory is full: slurmstepd: error: Detected 1 oom-kill"),
        (
            SIGKILL,
            OVER_LIMIT_22_05,
            EndingKind.HOST_OOM,
            "the node's memory is full: slurmstepd-node1: error: StepId=41.3",
        ),
        (SIGKILL, OOM_23_11, EndingKind.HOST_OOM, "the node's memory is full: slurmstepd: error: Detected 1 oom_kill"),
        (CODE_1, WORKER, EndingKind.HOST_OOM, "the node's memory is full: RuntimeError: DataLoader worker"),
        (CODE_1, SHM, EndingKind.HOST_OOM, "the shared memory of the node is full: RuntimeError: DataLoader"),
        (CODE_1, ALLOCATOR, EndingKind.HOST_OOM, "the node's memory is full: RuntimeError: [enforce fail"),
        (SIGABRT, ECC, EndingKind.GPU_FAULT, "the GPU, or its node, has a fault: what():  CUDA error: uncorrectable"),
        (CODE_1, BUS, EndingKind.GPU_FAULT, "the GPU, or its node, has a fault: RuntimeError: CUDA error: all CUDA"),
        (CODE_1, CUDA_OOM, EndingKind.CUDA_OOM, "the GPU's memory is full: torch.OutOfMemoryError: CUDA out of memory"),
        (SIGKILL, NODE, EndingKind.NODE_FAILED, "a node of the job has failed: slurmstepd: error: *** STEP 41.0"),
        (SIGABRT, WATCHDOG, EndingKind.COMMUNICATION, "a rank lost its peers: [rank1]:[E1120 12:00:00"),
        (CODE_1, NCCL, EndingKind.COMMUNICATION, "a rank lost its peers: torch.distributed.DistBackendError: NCCL"),
        (CODE_1, STALE, EndingKind.FILE_SYSTEM, "the file system lost a file that was open: OSError: [Errno 116]"),
        (SIGKILL, NCCL, EndingKind.RANK_DIED, "rank 1 was killed by SIGKILL"),
        (RankExit(1, None, signal.SIGBUS), "", EndingKind.RANK_DIED, "rank 1 was killed by SIGBUS"),
        (RankExit(1, 139, None), "", EndingKind.RANK_DIED, "rank 1 was killed by SIGSEGV"),
        (SIGABRT, "", EndingKind.RANK_DIED, "rank 1 was killed by SIGABRT"),
        (CODE_1, "whatever\n", EndingKind.UNKNOWN, "rank 1 ended with exit code 1 and no word of why"),
    ],
)
def test_a_rank_that_died_without_a_word_is_explained_by_its_log(
    end: RankExit, log: str, kind: EndingKind, begin: str
) -> None:
    ending = classify([end], None, warned=False, log=log)
    assert (ending.kind, ending.sentence[: len(begin)], ending.rank) == (kind, begin, 1)
    assert ending.hint


def test_a_rank_out_of_memory_is_the_cause_and_not_its_peers_complaint() -> None:
    ending = classify([SIGKILL], failed("peer_lost"), warned=False, log=OOM_22_05)
    assert ending.kind is EndingKind.HOST_OOM


def test_a_finished_run_is_finished_though_a_helper_process_ran_out_of_memory() -> None:
    ending = classify([CODE_1], {"outcome": "finished", "step": 9}, warned=False, log=OOM_22_05)
    assert ending.kind is EndingKind.FINISHED


def test_what_is_transient_is_made_again_and_what_would_end_in_the_same_way_is_not() -> None:
    again = {kind for kind in EndingKind if kind.is_retried_in_place}
    assert again == {
        EndingKind.RANK_DIED,
        EndingKind.HUNG,
        EndingKind.GPU_FAULT,
        EndingKind.NODE_FAILED,
        EndingKind.COMMUNICATION,
        EndingKind.FILE_SYSTEM,
        EndingKind.SICK_NODE,
        EndingKind.UNKNOWN,
    }


@pytest.mark.parametrize("kind", ["data", "input", "cuda_oom", "host_oom", "non_finite_loss", "disk", "error"])
def test_what_the_trainer_says_of_its_failure_is_passed_on(kind: str) -> None:
    ending = classify([RankExit(0, 1, None)], failed(kind), warned=False)
    assert ending == Ending(kind=EndingKind(kind), sentence="why", hint="do", step=3, rank=0)
    move = next_move(ending, without_progress=1, max_relaunches=3, cancelled=False)
    assert move is NextMove.GIVE_UP


def test_a_kind_of_tomorrow_is_an_error() -> None:
    assert classify([RankExit(0, 1, None)], failed("quantum"), warned=False).kind is EndingKind.ERROR


def test_ranks_ended_after_a_warning_before_they_saved_go_on_all_the_same() -> None:
    for exits in (KILLED, [RankExit(0, None, signal.SIGTERM)], CLEAN):
        ending = classify(exits, None, warned=True)
        assert ending.kind is EndingKind.LOST_WARNED
        assert next_move(ending, without_progress=0, max_relaunches=3, cancelled=False) is NextMove.CONTINUE


def test_after_a_signal_by_hand_the_same_allocation_is_used_further() -> None:
    ending = classify(CLEAN, {"outcome": "stopped", "step": 9, "signal": "SIGUSR2"}, warned=True)
    move = next_move(ending, without_progress=0, max_relaunches=3, cancelled=False, keeps_allocation=True)
    assert move is NextMove.RELAUNCH


def test_a_warning_that_killed_a_rank_before_it_listened_is_no_crash() -> None:
    ending = classify([RankExit(0, None, signal.SIGTERM)], None, warned=False)
    assert ending.kind is EndingKind.LOST_WARNED


def test_an_end_without_a_word_is_an_error_with_its_code() -> None:
    ending = classify([RankExit(0, 0, None), RankExit(1, 3, None)], None, warned=False)
    assert ending.sentence == "rank 1 ended with exit code 3 and no word of why"


def test_a_dead_rank_is_relaunched_until_the_bound_without_progress() -> None:
    ending = classify(KILLED, None, warned=False)
    moves = [next_move(ending, without_progress=count, max_relaunches=2, cancelled=False) for count in (1, 2, 3)]
    assert moves == [NextMove.RELAUNCH, NextMove.RELAUNCH, NextMove.GIVE_UP]


def test_a_cancelled_run_is_never_revived() -> None:
    for outcome in ({"outcome": "stopped", "step": 1}, None):
        ending = classify(CLEAN, outcome, warned=True)
        move = next_move(ending, without_progress=0, max_relaunches=3, cancelled=True)
        assert move is NextMove.STAY_CANCELLED


def test_a_run_that_finished_while_it_was_cancelled_is_finished() -> None:
    ending = classify(CLEAN, {"outcome": "finished", "step": 1}, warned=True)
    assert next_move(ending, without_progress=0, max_relaunches=3, cancelled=True) is NextMove.FINISH


def test_only_failures_since_the_last_new_checkpoint_count() -> None:
    died = {"event": "ended", "ending": "rank_died"}

    def saved(step: int) -> dict[str, Any]:
        return {"event": "saved", "step": step}

    assert attempts_without_progress([died, died]) == 2
    assert attempts_without_progress([died, saved(4), died]) == 1
    assert attempts_without_progress([saved(4), died, saved(4), died]) == 2
    assert attempts_without_progress([died, died, {"event": "submitted"}]) == 0
    back = {"event": "resumed", "step": 2}
    assert attempts_without_progress([saved(8), died, back, saved(6), died]) == 1, "a broken checkpoint took it back"


def test_jobs_too_short_for_a_single_step_are_given_up_but_preemption_never_counts() -> None:
    limited = {"event": "ended", "ending": "stopped", "cause": "time limit"}
    preempted = {"event": "ended", "ending": "stopped", "cause": "preempted"}
    assert attempts_without_progress([limited, limited, preempted]) == 2
    stopped = classify(CLEAN, {"outcome": "stopped", "step": 0}, warned=True)
    moves = [next_move(stopped, without_progress=count, max_relaunches=1, cancelled=False) for count in (0, 1, 2)]
    assert moves == [NextMove.CONTINUE, NextMove.CONTINUE, NextMove.GIVE_UP]


def test_a_disk_so_full_that_the_last_word_was_lost_is_known_from_the_saves() -> None:
    events: list[dict[str, Any]] = [
        {"event": "started"},
        {"event": "saved", "step": 4},
        {"event": "save_failed", "problem": "No space"},
    ]
    assert save_problem(events) == "No space"
    assert save_problem([*events, {"event": "saved", "step": 8}]) == ""
    assert save_problem([*events, {"event": "started"}]) == ""
    ending = classify([RankExit(0, 1, None)], None, warned=False, save_problem="No space")
    assert (ending.kind, ending.sentence) == (EndingKind.DISK, "nothing more could be written: No space")
