"""Why the disk refused to save, as an error number and in words."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from hpcgemma.train.failures import DISK_ERRNOS

REFUSAL_ERRNOS = DISK_ERRNOS | {errno.EAGAIN, errno.EACCES, errno.EPERM}
"""The disk's fault in a save. Elsewhere the last three have other causes, as EAGAIN of too many processes."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the disk answered; small, since ranks send it to each other."""

    number: int | None
    """The error's number; None where what was read back is not what was written."""
    problem: str
    """The same in words."""

    @classmethod
    def of(cls, error: OSError) -> Refusal:
        """Return an error as a refusal.

        Raises:
            OSError: The error itself, where it is not the disk's fault.
        """
        if error.errno is not None and error.errno not in REFUSAL_ERRNOS:
            raise error
        return cls(error.errno, error.strerror or str(error))

    @property
    def name(self) -> str | None:
        """The error's name, such as ESTALE; None where it has no number."""
        return None if self.number is None else errno.errorcode.get(self.number, str(self.number))
