"""How long each part of a rank's start took, up to its first step."""

from __future__ import annotations

from hpcgemma.processes import process_age_s


class StartParts:
    """The seconds of each part, from the start of this process on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def note(self, part: str) -> None:
        """Note that a part is over: what has passed since the one before is its own."""
        self.seconds[part] = round(process_age_s() - sum(self.seconds.values()), 3)
