"""Walltimes as Slurm writes them, in whole minutes inside; and durations as a person says them."""

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


def duration(seconds: float | None) -> str:
    """Return seconds as a person says them: 45 s, 12 min, 3 h 05 min, 2 d 04 h."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"
