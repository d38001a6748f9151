"""The first contact of the ranks, before anything large is loaded: a product on each device, and a sum over all ranks.

Both have a result that is known. A GPU that is broken, or a network that is, shows here within two minutes and by its
name, and not as a hang, or as a wrong loss, in the middle of a training.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from hpcgemma.errors import HpcGemmaError
from hpcgemma.runs.failure_signs import SICK_NODE_HINT
from hpcgemma.train.failures import PeersLostError, SickNodeError
from hpcgemma.train.meeting import Meeting
from hpcgemma.train.ranks import Ranks

TIMEOUT_S = 120.0
"""Seconds for it all. NCCL sets up its connections here, which it would have to do anyway."""
_SIDE = 256
_COUNT = 1024
_READY, _RIGHT = "ready", "right"
_TELLING_S = 2.0
"""Time for the others to say whether they have the right sum, before one that has not looks who has."""
_NETWORK_HINT = "the network between the nodes: network.socket_interface of the profile, or NCCL_DEBUG=INFO"


def make_first_contact(ranks: Ranks, device: torch.device, timeout_s: float = TIMEOUT_S) -> float:
    """Let this rank compute and all ranks add up, and return the seconds that it took.

    In a thread, since neither a GPU nor the setting up of NCCL can be interrupted; a rank whose contact fails ends, and
    the thread with it.

    Raises:
        SickNodeError: A rank computes something else, fails, or does not answer; it is this one, or another.
        PeersLostError: The ranks do not reach each other, and it cannot be told whose fault that is.
    """
    began = time.monotonic()
    errors: list[BaseException] = []

    def make() -> None:
        try:
            _compute(ranks, device)
            if ranks.meeting is not None:
                ranks.meeting.tell(_READY)
                _add_up(ranks, ranks.meeting, device)
        except BaseException as error:  # noqa: BLE001 - it is raised where the thread is waited for
            errors.append(error)

    thread = threading.Thread(target=make, name="first contact", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise _silence(ranks, timeout_s)
    if errors:
        raise errors[0]
    return time.monotonic() - began


def _compute(ranks: Ranks, device: torch.device) -> None:
    if device.type == "xla":  # it would compile for it
        return
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # which a thread has of its own
        ones = torch.ones(_SIDE, _SIDE, device=device)
        result = float((ones @ ones).sum())
    except RuntimeError as error:
        raise _own_fault(ranks, f"the first computation failed: {error}") from error
    if result != _SIDE**3:
        raise _own_fault(ranks, f"the first computation came to {result:g} instead of {_SIDE**3}")


def _add_up(ranks: Ranks, meeting: Meeting, device: torch.device) -> None:
    place = torch.device("cpu") if device.type == "xla" else device
    tensor = torch.full((_COUNT,), ranks.rank + 1, dtype=torch.int64, device=place)
    dist.all_reduce(tensor)
    found, wanted = sorted(set(tensor.tolist())), ranks.world_size * (ranks.world_size + 1) // 2
    if found == [wanted]:
        meeting.tell(_RIGHT)
        return
    time.sleep(_TELLING_S)
    what = f"the sum over all ranks came to {found[0]} instead of {wanted}"
    raise _fault_of(meeting, meeting.missing(_RIGHT) or [ranks.rank], what)


def _own_fault(ranks: Ranks, what: str) -> SickNodeError:
    who = f"rank {ranks.rank}" if ranks.meeting is None else ranks.meeting.names([ranks.rank])
    return SickNodeError(f"{who}: {what}", SICK_NODE_HINT, ranks.rank)


def _fault_of(meeting: Meeting, suspects: Sequence[int], what: str) -> HpcGemmaError:
    """Return what is wrong with some ranks; those of several nodes have the network in common."""
    sentence = f"{meeting.names(suspects)}: {what}"
    if len(meeting.nodes_of(suspects)) > 1:
        return PeersLostError(sentence, _NETWORK_HINT)
    return SickNodeError(sentence, SICK_NODE_HINT, suspects[0])


def _silence(ranks: Ranks, timeout_s: float) -> HpcGemmaError:
    """Return who is waited for, as far as it can be told."""
    if ranks.meeting is None:
        return _own_fault(ranks, f"the first computation takes longer than {timeout_s:.0f} s")
    if silent := ranks.meeting.missing(_READY):
        return _fault_of(ranks.meeting, silent, f"no answer to the first contact within {timeout_s:.0f} s")
    return PeersLostError(
        f"the ranks cannot add up a number within {timeout_s:.0f} s, though each of them computes", _NETWORK_HINT
    )
