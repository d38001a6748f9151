"""Whether the last save of an attempt is tried again after the disk refused it. Pure.

After a warning the run saves once and stops: what this save loses is lost. In the middle of a training nothing is tried
again, since the next save comes anyway.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from hpcgemma.train.failures import GONE_ERRNOS
from hpcgemma.train.refusal import Refusal

PASSING_ERRNOS = GONE_ERRNOS | {errno.EIO, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT}
"""What may have passed a moment later: a server that restarts, a disk on which others make room."""

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows a try that the disk refused."""

    again_in_s: float | None
    """Seconds until the next try; None: there is none."""
    why: str
    """A clause: when there is another try, or why there is none."""


def verdict(refusal: Refusal, *, tries: int, left_s: float, longest_try_s: float) -> Verdict:
    """Return whether to try again: after 1, 2, 4, 8, 8, ... seconds, as long as another try fits in the time left.

    Args:
        refusal: Of the try before; a failed read-back may pass as well, since the next try writes everything anew.
        tries: Tries that were refused so far.
        left_s: Seconds until the ranks may be killed.
        longest_try_s: Seconds that the longest of the tries took.
    """
    if refusal.number is not None and refusal.number not in PASSING_ERRNOS:
        return Verdict(again_in_s=None, why="another try would not help")
    pause_s = min(_FIRST_PAUSE_S * 2 ** min(tries - 1, 30), _LONGEST_PAUSE_S)
    if pause_s + longest_try_s <= left_s:
        return Verdict(again_in_s=pause_s, why=f"trying again in {pause_s:.0f} s")
    count = "one try" if tries == 1 else f"{tries} tries"
    return Verdict(
        again_in_s=None,
        why=f"after {count} {max(left_s, 0.0):.0f} s are left, and another, which may take {longest_try_s:.1f} s, does "
        f"not fit after a pause of {pause_s:.0f} s",
    )
