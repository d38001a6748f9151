"""Why a rank fails, in a word the supervisor understands, a sentence, and a remedy."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from typing import Literal

from hpcgemma import files
from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.runs.failure_signs import line_of, sign_in
from hpcgemma.runs.folder import RunFolder

FailureKind = Literal[
    "data",
    "cuda_oom",
    "host_oom",
    "gpu_fault",
    "sick_node",
    "non_finite_loss",
    "disk",
    "file_system",
    "input",
    "peer_lost",
    "error",
]

GONE_ERRNOS = frozenset({errno.ESTALE, errno.ETIMEDOUT, errno.ESHUTDOWN, errno.ENOTCONN})
"""The file system went away and may be back: what was open is lost, and another try may well succeed.

ESHUTDOWN is seen of a Lustre server that has evicted its client, ENOTCONN of a FUSE mount whose process has died.
"""

GONE_HINT = "if it happens again, tell the site which file system it was"

DISK_ERRNOS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.EFBIG,
        *GONE_ERRNOS,
    }
)
"""The disk's fault and not ours: full, over quota, read-only, broken, file too large, gone away."""


class DataError(InputError):
    """The rows, or the tokenizer, cannot be trained on."""


class NonFiniteLossError(HpcGemmaError):
    """The loss or the gradient is no number any more."""


class DiskError(HpcGemmaError):
    """What must be saved cannot be written."""


class FileSystemGoneError(HpcGemmaError):
    """What must be saved cannot be written now, but may well be in another attempt."""


class SickNodeError(HpcGemmaError):
    """A rank failed the first contact with the others.

    Args:
        problem: What it failed in.
        hint: What to do about it.
        rank: The rank, which need not be the one that says so.
    """

    def __init__(self, problem: str, hint: str, rank: int | None = None) -> None:
        super().__init__(problem, hint)
        self.rank = rank


class OvertakenError(HpcGemmaError):
    """A later attempt works on the run."""


class PeersLostError(HpcGemmaError):
    """The ranks do not reach each other."""


_KINDS: tuple[tuple[type[HpcGemmaError], FailureKind], ...] = (
    (DataError, "data"),
    (InputError, "input"),
    (NonFiniteLossError, "non_finite_loss"),
    (SickNodeError, "sick_node"),
    (PeersLostError, "peer_lost"),
    (DiskError, "disk"),
    (FileSystemGoneError, "file_system"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A rank's failure."""

    kind: FailureKind
    sentence: str
    hint: str
    is_expected: bool = True
    """False for a bug, whose traceback is wanted."""
    rank: int | None = None
    """The rank that failed, where it is another than the one that says so."""
    is_of_all: bool = False
    """Whether all ranks failed, and which first is not known: no node is to be blamed for it."""


def failure_of(error: BaseException) -> Failure:
    """Return what kind of failure an exception is."""
    if isinstance(error, HpcGemmaError):
        rank = error.rank if isinstance(error, SickNodeError) else None
        is_of_all = isinstance(error, FileSystemGoneError)
        return Failure(kind=_kind_of(error), sentence=error.problem, hint=error.hint, rank=rank, is_of_all=is_of_all)
    names = {cls.__name__ for cls in type(error).__mro__}  # by name: torch may not have been imported yet
    text = f"{error}"
    first = text.splitlines()[0] if text else type(error).__name__
    if "OutOfMemoryError" in names:
        return Failure(
            kind="cuda_oom",
            sentence=f"the GPU's memory is full: {first if text else 'out of memory'}",
            hint="--set training.micro_batch=1, --set training.activation_checkpointing=true, or a smaller "
            "--set data.max_length",
        )
    if isinstance(error, OSError) and error.errno in GONE_ERRNOS:
        return Failure(
            kind="file_system",
            sentence=f"the file system lost a file that was open: {text}",
            hint=GONE_HINT,
        )
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        text = f"cannot allocate memory: {text}"
    # A failure of torch, CUDA or NCCL is told by its words alone: they are RuntimeErrors.
    is_lost = bool(names & {"DistBackendError", "DistNetworkError", "DistStoreError"})
    sign = sign_in(text) if is_lost or names & {"RuntimeError", "MemoryError", "OSError"} else None
    if sign is not None and sign.kind in ("cuda_oom", "gpu_fault", "host_oom"):
        return Failure(kind=sign.kind, sentence=f"{sign.sentence}: {line_of(text, sign)}", hint=sign.hint)
    if is_lost or (sign is not None and sign.kind == "communication" and "RuntimeError" in names):
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
    return next((kind for cls, kind in _KINDS if isinstance(error, cls)), "error")


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
            "rank": None if failure.is_of_all else rank if failure.rank is None else failure.rank,
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
