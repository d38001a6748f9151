"""What saves and steps took, read from run folders."""

from __future__ import annotations

from dataclasses import dataclass

from hpcgemma.runs import store
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.lead import SaveNeed, save_need
from hpcgemma.runs.progress import recent_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a run needs to save, and which run."""

    run: str
    need: SaveNeed


def need_of(folder: RunFolder) -> SaveNeed | None:
    """Return what a run needs to save after a warning; None before its first save."""
    return save_need(folder.events(), recent_metrics(folder))


def newest_measurement(profile: str, recipe: str | None = None) -> Measurement | None:
    """Return what saves took in the newest run of a profile that has saved, of one recipe or of any."""
    for entry in store.all_runs():
        if entry.profile == profile and recipe in (None, entry.recipe):
            need = need_of(entry.folder)
            if need is not None:
                return Measurement(run=entry.name, need=need)
    return None
