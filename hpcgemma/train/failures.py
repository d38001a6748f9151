"""Why a rank fails, in a word the supervisor understands, a sentence, and a remedy."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from typing import Literal

from hpcgemma import files
from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.runs.folder import RunFolder

FailureKind = Literal["data", "cuda_oom", "non_finite_loss", "disk", "input", "peer_lost", "error"]

DISK_ERRNOS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.EFBIG,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ESHUTDOWN,
        errno.ENOTCONN,
    }
)
"""The disk's fault and not ours: full, over quota, read-only, broken, file too large, gone away.

The last two are seen of a Lustre server that has evicted its client, and of a FUSE mount whose process has died.
"""


class DataError(InputError):
    """The rows, or the tokenizer, cannot be trained on."""


class NonFiniteLossError(HpcGemmaError):
    """The loss or the gradient is no number any more."""


class DiskError(HpcGemmaError):
    """What must be saved cannot be written."""


class OvertakenError(HpcGemmaError):
    """A later attempt works on the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A rank's failure."""

    kind: FailureKind
    sentence: str
    hint: str
    is_expected: bool = True
    """False for a bug, whose traceback is wanted."""


# What torch says when another rank's process is gone. That rank's own words are the cause.
_PEER_SIGNS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "gloo/transport",
    "broken pipe",
    "timed out waiting",
    "eaddrinuse",
    "nccl communicator was aborted",
)


def failure_of(error: BaseException) -> Failure:
    """Return what kind of failure an exception is."""
    if isinstance(error, HpcGemmaError):
        return Failure(kind=_kind_of(error), sentence=error.problem, hint=error.hint)
    names = {cls.__name__ for cls in type(error).__mro__}  # by name: torch may not have been imported yet
    text = f"{error}"
    if "OutOfMemoryError" in names:
        return Failure(
            kind="cuda_oom",
            sentence=f"the GPU's memory is full: {text.splitlines()[0] if text else 'out of memory'}",
            hint="--set training.micro_batch=1, --set training.activation_checkpointing=true, or a smaller "
            "--set data.max_length",
        )
    if names & {"DistBackendError", "DistNetworkError", "DistStoreError"} or (
        "RuntimeError" in names and any(sign in text.lower() for sign in _PEER_SIGNS)
    ):
        first = text.splitlines()[0] if text else type(error).__name__
        return Failure(
            kind="peer_lost",
            sentence=f"another rank is gone (connection closed by peer): {first}",
            hint="the logs of the other ranks say why",
        )
    if isinstance(error, ModuleNotFoundError):
        return Failure(
            kind="error",
            sentence=f"the package {error.name} is not installed in this environment",
            hint="pip install 'hpcgemma[train]'",
        )
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return Failure(
            kind="disk",
            sentence=f"the disk refused: {text}",
            hint="free space or raise the quota, then: hpcgemma resume RUN",
        )
    return Failure(
        kind="error",
        sentence=f"{type(error).__name__}: {text}",
        hint="the traceback is at the end of this rank's log: hpcgemma logs RUN",
        is_expected=False,
    )


def _kind_of(error: HpcGemmaError) -> FailureKind:
    if isinstance(error, DataError):
        return "data"
    if isinstance(error, InputError):
        return "input"
    if isinstance(error, NonFiniteLossError):
        return "non_finite_loss"
    return "disk" if isinstance(error, DiskError) else "error"


def write_failure(folder: RunFolder, attempt: int, failure: Failure, *, rank: int, step: int) -> None:
    """Write a failure as the attempt's outcome, unless a cause is there already.

    A rank that only lost its peers does not know the cause, so the rank that does writes over its words.
    """
    path = folder.outcome_file(attempt)
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if known and not (known.get("kind") == "peer_lost" and failure.kind != "peer_lost"):
        return
    write_outcome(
        folder,
        attempt,
        {
            "outcome": "failed",
            "kind": failure.kind,
            "sentence": failure.sentence,
            "hint": failure.hint,
            "rank": rank,
            "step": step,
        },
    )


def write_outcome(folder: RunFolder, attempt: int, outcome: dict[str, object]) -> None:
    """Write an attempt's outcome for the supervisor."""
    path = folder.outcome_file(attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, json.dumps(outcome, ensure_ascii=False) + "\n")


def attempt_number() -> int:
    """Return which launch of the run this is, also where the environment is not understood."""
    text = os.environ.get("HPCGEMMA_ATTEMPT", "1")
    return int(text) if text.isdigit() else 1
