"""Walltimes as Slurm writes them, in whole minutes inside."""

from __future__ import annotations

import re

_PATTERN = re.compile(
    r"(?:(?P<days>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?"
    r"|(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)|(?P<mm>\d+):(?P<ss>\d+)|(?P<min>\d+))"
)
FORMATS = "MINUTES, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS"
MAX_WALLTIME_MIN = 365 * 24 * 60


def parse_walltime(text: str) -> int:
    """Return the minutes of a walltime such as ``04:00:00`` or ``1-12``, seconds rounded up.

    The accepted forms are those of sbatch's ``--time`` (manual page of sbatch).

    Raises:
        ValueError: The text is none of these forms, is zero, or is longer than a year.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a walltime; write {FORMATS}")
    part = {name: int(value) for name, value in match.groupdict(default="0").items()}
    seconds = (
        part["days"] * 86400
        + (part["dh"] + part["h"]) * 3600
        + (part["dm"] + part["m"] + part["mm"] + part["min"]) * 60
        + part["ds"]
        + part["s"]
        + part["ss"]
    )
    minutes = -(-seconds // 60)
    if not 0 < minutes <= MAX_WALLTIME_MIN:
        raise ValueError(f"{text!r} is not between one minute and a year")
    return minutes


def format_walltime(minutes: int) -> str:
    """Return minutes as ``HH:MM:00``, or ``D-HH:MM:00`` from one day on."""
    days, rest = divmod(minutes, 1440)
    clock = f"{rest // 60:02d}:{rest % 60:02d}:00"
    return f"{days}-{clock}" if days else clock
