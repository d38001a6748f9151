"""What failures look like in the words of torch, CUDA, NCCL, Slurm and Linux. Pure; trainer and supervisor read by it.

The trainer looks at the text of an exception; the supervisor at the log of a rank that died without one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SignKind = Literal["cuda_oom", "gpu_fault", "host_oom", "node_failed", "file_system", "communication"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A kind of failure, in words, and how it is recognised."""

    kind: SignKind
    sentence: str
    hint: str
    words: tuple[str, ...]
    """Any of these, in lower case, is the sign."""


SICK_NODE_HINT = (
    "the run goes on without that node where Slurm has another; hpcgemma nodes shows what is held against it, and the "
    "site should hear of it"
)
"""What to do about a node that failed a check."""

_LESS_HOST_MEMORY = "--set resources.memory_per_gpu_mb=…, a smaller --set data.num_workers=…, or more nodes"

# Causes come before what follows from them: a rank that is out of memory takes its peers' connections with it.
SIGNS = (
    Sign(
        kind="host_oom",
        sentence="the shared memory of the node is full",
        hint="--set data.num_workers=0, or a larger /dev/shm",
        words=("out of shared memory", "unable to open shared memory object", "unable to allocate shared memory"),
    ),
    Sign(
        kind="cuda_oom",
        sentence="the GPU's memory is full",
        hint="--set training.micro_batch=1, --set training.activation_checkpointing=true, or a smaller "
        "--set data.max_length",
        words=("cuda out of memory", "cuda error: out of memory", "cublas_status_alloc_failed", "hip out of memory"),
    ),
    Sign(
        kind="gpu_fault",
        sentence="the GPU, or its node, has a fault",
        hint="if it happens again, tell the site which node it was",
        words=(
            "uncorrectable ecc error",
            "uncorrectable nvlink error",
            "unspecified launch failure",
            "hardware stack error",
            "gpu has fallen off the bus",
            "gpu is lost",
            "nvrm: xid",
            "all cuda-capable devices are busy or unavailable",
            "cuda-capable device(s) is/are busy or unavailable",
            "system not yet initialized",
            "no cuda gpus are available",
            "unable to determine the device handle for gpu",
        ),
    ),
    Sign(
        kind="host_oom",
        sentence="the node's memory is full",
        hint=_LESS_HOST_MEMORY,
        words=(
            "oom-kill event",  # slurmstepd up to 22.05
            "oom_kill event",  # and since 23.02
            ": out of memory",  # srun, of a task
            "exceeded memory limit",  # slurmstepd where JobAcctGatherParams=OverMemoryKill, of a step
            "exceeded job memory limit",  # and of a job
            "is killed by signal: killed",  # torch, of a DataLoader worker
            "cannot allocate memory",
            "can't allocate memory",
            "\nmemoryerror",
        ),
    ),
    Sign(
        kind="node_failed",
        sentence="a node of the job has failed",
        hint="if the run does not go on by itself: hpcgemma resume RUN",
        words=("due to node failure", "node failure on "),
    ),
    Sign(
        kind="file_system",
        sentence="the file system lost a file that was open",
        hint="if it happens again, tell the site which file system it was",
        words=(
            "stale file handle",
            "transport endpoint is not connected",
            "cannot send after transport endpoint shutdown",
        ),
    ),
    Sign(
        kind="communication",
        sentence="the ranks lost each other",
        hint="if it happens again: the network (network.socket_interface of the profile, NCCL_DEBUG=INFO), or a sick "
        "node",
        words=(
            "connection closed by peer",
            "connection reset by peer",
            "connection refused",
            "gloo/transport",
            "broken pipe",
            "timed out waiting",
            "eaddrinuse",
            "application timeout caused pair closure",
            "nccl communicator was aborted",
            "nccl error",
            "ncclremoteerror",
            "ncclsystemerror",
            "ncclinternalerror",
            "remote process exited or there was a network error",
            "collective operation timeout",
            "failed to recv, got 0 bytes",
            "connection was likely closed",
        ),
    ),
)


def sign_in(text: str) -> Sign | None:
    """Return the first sign of a failure that a text holds."""
    lower = text.lower()
    return next((sign for sign in SIGNS if any(word in lower for word in sign.words)), None)


def line_of(text: str, sign: Sign) -> str:
    """Return the line of a text that holds a sign."""
    return next((line.strip() for line in text.splitlines() if any(word in line.lower() for word in sign.words)), "")
