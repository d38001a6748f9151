"""The values in Slurm's output: durations, times, counts, exit codes. Pure; unknown text is None."""

from __future__ import annotations

import re
from datetime import datetime

_DURATION = re.compile(r"(?:(?P<days>\d+)-)?(?:(?P<hours>\d+):)?(?P<minutes>\d+):(?P<seconds>\d+)(?:\.\d+)?")
_NOTHING = {"", "(null)", "None", "N/A", "n/a", "Unknown", "None assigned"}
_GPU_GRES = re.compile(r"(?:^|,)(?:gres[:/])?gpu(?::[^:,(=]+)?[:=](?P<count>\d+)")


def text_or_empty(text: str) -> str:
    """Return the text, or an empty one where Slurm prints a word for nothing, as ``(null)``."""
    stripped = text.strip()
    return "" if stripped in _NOTHING else stripped


def duration_s(text: str) -> int | None:
    """Return the seconds of a duration such as ``1-02:03:04`` or ``30:00``.

    Returns:
        Seconds; None for ``UNLIMITED``, ``INVALID``, ``NOT_SET`` and whatever else is no duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        return None
    part = {name: int(value or 0) for name, value in match.groupdict().items()}
    return part["days"] * 86400 + part["hours"] * 3600 + part["minutes"] * 60 + part["seconds"]


def duration_min(text: str) -> int | None:
    """Return the whole minutes of a duration, seconds rounded up; None as in ``duration_s``."""
    seconds = duration_s(text)
    return None if seconds is None else -(-seconds // 60)


def local_time(text: str) -> datetime | None:
    """Return a time as Slurm prints it, local and naive; None for ``Unknown``, ``N/A`` and the like."""
    try:
        return datetime.strptime(text.strip(), "%Y-%m-%dT%H:%M:%S")
    except ValueError:
        return None


def leading_int(text: str) -> int | None:
    """Return the number at the start of ``514000+`` or ``4-8``; None if there is none."""
    match = re.match(r"\d+", text.strip())
    return int(match.group()) if match else None


def exit_and_signal(text: str) -> tuple[int | None, int | None]:
    """Return exit code and signal of ``3:0``; both None where the text has another form."""
    match = re.fullmatch(r"(\d+):(\d+)", text.strip())
    return (int(match.group(1)), int(match.group(2))) if match else (None, None)


def clean_state(text: str) -> str:
    """Return the long state without what sacct adds: ``CANCELLED by 1234`` becomes ``CANCELLED``."""
    words = text.split()
    return words[0].rstrip("+").upper() if words else "UNKNOWN"


def gpu_count(gres: str) -> int:
    """Return the GPUs in a list of generic resources, as ``gpu:a100:4(S:0-1),tmpfs:3T`` or ``gpu:4``."""
    without_sockets = re.sub(r"\([^)]*\)", "", gres)
    return sum(int(match["count"]) for match in _GPU_GRES.finditer(without_sockets))


def host_names(hostlist: str) -> list[str]:
    """Return the names that Slurm writes as ``node[01-03,7],login1``, in its order."""
    return [name for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", hostlist) for name in _unfolded(part)]


def _unfolded(part: str) -> list[str]:
    match = re.fullmatch(r"(?P<before>[^\[]*)\[(?P<numbers>\d[\d,-]*)\](?P<after>.*)", part)
    if match is None:
        return [part]
    numbers = []
    for piece in match["numbers"].split(","):
        low, _, high = piece.partition("-")
        numbers += [f"{number:0{len(low)}d}" for number in range(int(low), int(high or low) + 1)]
    return [f"{match['before']}{number}{rest}" for number in numbers for rest in _unfolded(match["after"])]
