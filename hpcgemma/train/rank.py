"""One rank from its start to its end: find its place, train, say how it ended."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hpcgemma.errors import HpcGemmaError
from hpcgemma.recipes.types import TrainingSpec
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.environment import announce_place, choose_device, read_environment
from hpcgemma.train.failures import attempt_number, failure_of, write_failure, write_outcome
from hpcgemma.train.heartbeat import Heartbeat
from hpcgemma.train.runfile import read_run
from hpcgemma.train.signals import StopRequest
from hpcgemma.train.start_parts import StartParts

if TYPE_CHECKING:
    import torch


def run_rank(folder: RunFolder, stop: StopRequest) -> int:
    """Train as one rank and return the exit code; how it ended is in the outcome file.

    Args:
        folder: The run folder.
        stop: The wish to stop; its handlers are set already.
    """
    rank = 0
    heartbeat: Heartbeat | None = None
    try:
        environment = read_environment(os.environ)
        rank = environment.rank
        heartbeat = Heartbeat(folder.heartbeat_file(rank))
        heartbeat.beat("starting")
        run_id, recipe = read_run(folder)
        device = choose_device(environment, on_xla=recipe.strategy.name == "xla")
        announce_place(environment, device)
        set_up_torch(device, recipe.training)

        from hpcgemma.train.first_contact import make_first_contact
        from hpcgemma.train.loop import Trainer
        from hpcgemma.train.ranks import Ranks

        parts = StartParts()
        parts.note("imports")
        heartbeat.beat("loading")
        hide_progress_bars()
        ranks = Ranks(environment, device)
        contact_s = make_first_contact(ranks, device)
        if ranks.is_first:
            print(f"first contact of {ranks.world_size} ranks: {1000 * contact_s:.0f} ms", flush=True)
        parts.note("meeting")
        end = Trainer(folder, run_id, recipe, environment, ranks, device, stop, heartbeat, parts).run()
        if ranks.is_first:
            write_outcome(folder, environment.attempt, asdict(end))
            print(f"{end.outcome} at step {end.step} of {end.total_steps}", flush=True)
        heartbeat.beat(end.outcome, end.step)
        ranks.leave()
    except BaseException as error:  # noqa: BLE001 - whatever ends a rank must reach the supervisor
        return _report(folder, error, rank, heartbeat.step if heartbeat else 0)
    return 0


def set_up_torch(device: torch.device, training: TrainingSpec) -> None:
    """Set threads, determinism, and what the recipe says of the GPU.

    The number of threads decides how a CPU splits its sums, so it is fixed: OMP_NUM_THREADS, else 1.
    """
    import torch

    threads = os.environ.get("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(threads) if threads.isdigit() and int(threads) else 1)
    if device.type == "cpu":
        if training.compile:
            torch.use_deterministic_algorithms(True)
        else:
            torch.set_deterministic_debug_mode("error")  # the same, without importing torch's compiler
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high" if training.tf32 else "highest")
    if training.gpu_memory_fraction is not None:
        torch.cuda.set_per_process_memory_fraction(training.gpu_memory_fraction, device)


def hide_progress_bars() -> None:
    """Keep transformers' progress bars out of the log, which is no terminal."""
    import transformers

    libraries_log: Any = transformers.utils.logging
    libraries_log.disable_progress_bar()


def _report(folder: RunFolder, error: BaseException, rank: int, step: int) -> int:
    failure = failure_of(error)
    if not failure.is_expected:
        traceback.print_exception(error)
    print(f"Error: {failure.sentence}\nTry:   {failure.hint}", file=sys.stderr, flush=True)
    try:
        write_failure(folder, attempt_number(), failure, rank=rank, step=step)
    except OSError as problem:
        print(f"the outcome could not be written: {problem}", file=sys.stderr, flush=True)
    return error.exit_code if isinstance(error, HpcGemmaError) else 1
