"""A rank's place, its signals, its device, its failures and its signs of life."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.environment import choose_device, read_environment
from hpcgemma.train.failures import Failure, FileSystemGoneError, NonFiniteLossError, failure_of, write_failure
from hpcgemma.train.heartbeat import Heartbeat
from hpcgemma.train.signals import StopRequest, stacks_signals, stop_signals

CPU = torch.device("cpu")
PEERS = {"MASTER_ADDR": "node1", "MASTER_PORT": "1234"}


def test_a_rank_knows_its_place_from_torchruns_variables_or_from_sruns() -> None:
    torchrun = read_environment({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "SLURM_PROCID": "9", **PEERS})
    srun = read_environment({"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", **PEERS})
    assert torchrun == srun
    assert (srun.rank, srun.local_rank, srun.world_size, srun.attempt, srun.device) == (3, 1, 4, 1, "auto")


def test_without_any_variable_a_rank_is_alone() -> None:
    alone = read_environment({"HPCGEMMA_ATTEMPT": "7", "HPCGEMMA_DEVICE": "cpu"})
    assert (alone.rank, alone.world_size, alone.attempt, alone.device) == (0, 1, 7, "cpu")


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"RANK": "one"}, "RANK is 'one', not a number"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "rank 0 of 2 cannot find its peers"),
        ({"HPCGEMMA_DEVICE": "tpu"}, "HPCGEMMA_DEVICE is 'tpu'"),
    ],
)
def test_a_place_that_makes_no_sense_is_named(variables: dict[str, str], problem: str) -> None:
    with pytest.raises(HpcGemmaError, match=problem):
        read_environment(variables)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so none is missing")
def test_a_gpu_that_is_demanded_and_not_seen_is_an_error_and_never_the_cpu() -> None:
    with pytest.raises(HpcGemmaError, match="cannot see a GPU on this node"):
        choose_device(read_environment({"HPCGEMMA_DEVICE": "cuda"}))
    assert choose_device(read_environment({})) == CPU


def test_a_cpu_computes_the_same_each_time_and_torchs_compiler_is_imported_only_where_it_compiles() -> None:
    code = (
        "import sys, torch; from types import SimpleNamespace; from hpcgemma.train.rank import set_up_torch\n"
        "for compiles in (False, True):\n"
        "    set_up_torch(torch.device('cpu'), SimpleNamespace(compile=compiles))\n"
        "    print(torch.are_deterministic_algorithms_enabled(), 'torch._inductor' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True False", "True True"]


@pytest.mark.parametrize(("visible", "local_rank", "index"), [(4, 2, 2), (1, 3, 0)])
def test_a_rank_takes_its_own_gpu_or_the_only_one_that_slurm_shows_it(
    monkeypatch: pytest.MonkeyPatch, visible: int, local_rank: int, index: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    environment = read_environment({"RANK": "7", "LOCAL_RANK": str(local_rank), "WORLD_SIZE": "8", **PEERS})
    assert choose_device(environment) == torch.device("cuda", index)


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    environment = read_environment({"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4", **PEERS})
    with pytest.raises(HpcGemmaError, match="local rank 2 has no GPU: torch sees 2"):
        choose_device(environment)


def test_the_stop_signals_are_term_usr2_and_the_one_that_is_named() -> None:
    usual = {signal.SIGTERM, signal.SIGUSR2}
    assert stop_signals({}) == stop_signals({"HPCGEMMA_SIGNAL": "nonsense"}) == usual
    assert stop_signals({"HPCGEMMA_SIGNAL": "SIGKILL"}) == usual
    assert stop_signals({"HPCGEMMA_SIGNAL": "usr1"}) == usual | {signal.SIGUSR1}
    assert stop_signals({"HPCGEMMA_SIGNAL": "SIGUSR1"}) == usual | {signal.SIGUSR1}


def test_the_signal_that_asks_for_stacks_is_not_one_that_warns() -> None:
    usual = {"HPCGEMMA_SIGNAL": "USR2", "HPCGEMMA_STACKS_SIGNAL": "USR1"}
    assert (stop_signals(usual), stacks_signals(usual)) == ({signal.SIGTERM, signal.SIGUSR2}, {signal.SIGUSR1})
    swapped = {"HPCGEMMA_SIGNAL": "USR1", "HPCGEMMA_STACKS_SIGNAL": "USR2"}
    assert (stop_signals(swapped), stacks_signals(swapped)) == ({signal.SIGTERM, signal.SIGUSR1}, {signal.SIGUSR2})
    assert stacks_signals({}) == set()
    assert stacks_signals({"HPCGEMMA_SIGNAL": "USR2", "HPCGEMMA_STACKS_SIGNAL": "USR2"}) == set()


def test_the_first_of_several_signals_counts_and_forked_workers_ignore_them() -> None:
    kept = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        stop = StopRequest()
        stop.listen({signal.SIGUSR1, signal.SIGUSR2})
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            os._exit(stop.signal_number)
        assert os.waitpid(child, 0)[1] == 0
        assert (stop.signal_number, stop.age_s) == (0, 0.0)
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.signal_number == signal.SIGUSR2
        assert 0 < stop.age_s < 60
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("error", "kind", "is_expected"),
    [
        (InputError("p", "h"), "input", True),
        (NonFiniteLossError("p", "h"), "non_finite_loss", True),
        (HpcGemmaError("p", "h"), "error", True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "cuda_oom", True),
        (OSError(errno.ENOSPC, "No space left on device"), "disk", True),
        (torch.distributed.DistNetworkError("port 1: EADDRINUSE"), "peer_lost", True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"), "peer_lost", True),
        (ModuleNotFoundError("No module named 'peft'", name="peft"), "error", True),
        (RuntimeError("CUDA error: out of memory"), "cuda_oom", True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "gpu_fault", True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited"), "peer_lost", True),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "host_oom", True),
        (MemoryError(), "host_oom", True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "host_oom", True),
        (OSError(errno.ESTALE, "Stale file handle"), "file_system", True),
        (ValueError("a row says: CUDA out of memory"), "error", False),
        (RuntimeError("shapes do not match"), "error", False),
        (KeyError("x"), "error", False),
    ],
)
def test_a_failure_is_told_by_its_kind(error: Exception, kind: str, is_expected: bool) -> None:
    failure = failure_of(error)
    assert (failure.kind, failure.is_expected) == (kind, is_expected)
    assert failure.sentence
    assert failure.hint


def test_the_cause_is_written_over_a_lost_peer_and_never_the_other_way(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    lost = Failure(kind="peer_lost", sentence="another rank is gone", hint="see the others")
    cause = Failure(kind="cuda_oom", sentence="full", hint="less")
    other = Failure(kind="error", sentence="later", hint="none")
    for failure, rank in ((lost, 0), (cause, 1), (lost, 2), (other, 3)):
        write_failure(folder, 1, failure, rank=rank, step=9)
    assert json.loads(folder.outcome_file(1).read_text()) == {
        "outcome": "failed",
        "kind": "cuda_oom",
        "sentence": "full",
        "hint": "less",
        "rank": 1,
        "step": 9,
    }


def test_of_a_save_that_found_no_file_system_no_rank_is_to_blame(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_failure(folder, 1, failure_of(FileSystemGoneError("step 9 could not be saved", "ask")), rank=1, step=9)
    outcome = json.loads(folder.outcome_file(1).read_text())
    assert (outcome["kind"], outcome["rank"], outcome["step"]) == ("file_system", None, 9)


def test_a_heartbeat_is_written_at_each_change_of_phase_and_else_once_a_second(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat" / "0"
    heartbeat = Heartbeat(path)
    heartbeat.total_steps = 10
    heartbeat.beat("training", 1)
    heartbeat.beat("training", 2)
    facts = json.loads(path.read_text())
    assert (facts["step"], facts["total_steps"], facts["phase"]) == (1, 10, "training")
    heartbeat.beat("saving")
    facts = json.loads(path.read_text())
    assert (facts["step"], facts["phase"]) == (2, "saving")
    assert [each.name for each in path.parent.iterdir()] == ["0"]


def test_a_heartbeat_says_how_long_the_ranks_own_part_of_a_step_takes(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path / "heartbeat" / "0")
    heartbeat.beat("loading")
    assert json.loads((tmp_path / "heartbeat" / "0").read_text())["own_s"] is None
    for seconds in [1.0] + [2.0] * 200:
        heartbeat.note_own_part(seconds, seconds / 2)
    heartbeat.beat("training", 201)
    facts = json.loads((tmp_path / "heartbeat" / "0").read_text())
    assert (facts["own_s"], facts["rows_s"]) == pytest.approx((2.0, 1.0), abs=0.01)


def test_a_heartbeat_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Heartbeat(tmp_path / "file" / "0").beat("training", 1)
