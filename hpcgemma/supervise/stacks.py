"""What ranks that hang were doing: the stacks that faulthandler wrote into their logs. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+.*\(most recent call first\):$", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line \d+ in (?P<function>.*)$', re.MULTILINE)
_INNERMOST = 4

_WAITING_FILES = (
    "/torch/distributed/",
    "/torch/nn/parallel/distributed.py",  # DDP sends rank 0's buffers before a forward pass
    "/hpcgemma/train/ranks.py",
    "/deepspeed/comm/",
)
_WAITING_FUNCTIONS = ("_engine_run_backward",)
"""Of DDP and FSDP, which exchange gradients in the backward pass."""


def has_stack(text: str) -> bool:
    """Return whether what a rank wrote when it was asked holds a stack."""
    return _THREAD.search(text) is not None


def waits_for_others(text: str) -> bool:
    """Return whether a thread's innermost calls are where ranks wait for each other."""
    starts = [match.end() for match in _THREAD.finditer(text)]
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        for frame in list(_FRAME.finditer(text, start, end))[:_INNERMOST]:
            if any(part in frame["file"] for part in _WAITING_FILES) or frame["function"] in _WAITING_FUNCTIONS:
                return True
    return False


def suspect(answers: Mapping[int, str]) -> int | None:
    """Return the one rank that the others wait for; None where the stacks do not tell.

    A stopped process, or one that the kernel holds, cannot write its stack. Of those that can, the one that waits for
    nobody is the one that is waited for.

    Args:
        answers: What each rank wrote when it was asked for its stack.
    """
    silent = [rank for rank, text in answers.items() if not has_stack(text)]
    busy = [rank for rank, text in answers.items() if has_stack(text) and not waits_for_others(text)]
    for group in (silent, busy):
        if len(group) == 1 and len(answers) > 1:
            return group[0]
        if group:
            return None
    return None
