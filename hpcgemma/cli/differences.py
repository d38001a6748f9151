"""What differs from how a run was made so far, and what of it `hpcgemma resume --allow-change` lets through."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import Any

from hpcgemma import snapshot
from hpcgemma.changes import accepted, refusal_of, refused
from hpcgemma.checkpoints import Checkpoint
from hpcgemma.cli import console
from hpcgemma.errors import InputError
from hpcgemma.recipes.libraries import library_versions
from hpcgemma.recipes.types import Recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.provenance import Provenance, changes_since, provenance_of
from hpcgemma.runs.store import RunEntry

_SHOWN = 5
"""Changed files that are named."""


def show_and_check(
    entry: RunEntry, content: dict[str, Any], newest: Checkpoint | None, allowed: Collection[str]
) -> None:
    """Print in what a resume would differ from what made a run's newest checkpoint, and refuse what is not allowed.

    The content of the data is not among it: the job itself compares it, before any rank starts. Nor is a library that
    cannot be seen here, since the job may get it from a module.

    Args:
        entry: The run.
        content: What its run.yaml is going to say.
        newest: Its newest checkpoint; None where it has none, and so no result that could change.
        allowed: Kinds of changes that may change the result.

    Raises:
        InputError: A change would change the result, and is not allowed now nor was at a resume from this checkpoint.
    """
    folder = entry.folder
    if "code" not in allowed and (sentence := unused_code(folder)):
        console.say(sentence)
    if newest is None:
        return
    recipe = Recipe.model_validate(content["recipe"])
    code = snapshot.code_hash(snapshot.PACKAGE if "code" in allowed else folder.package_dir)
    now = Provenance(recipe=recipe, code=code, libraries=library_versions(recipe))
    changes = changes_since(provenance_of(newest.path), now)
    for each in changes:
        console.say(f"changed since step {newest.step} was saved: {each}")
    earlier = accepted(content.get("allowed_changes") or {}, newest.step)
    if bad := refused(changes, {*allowed, *earlier}):
        raise InputError(*refusal_of(bad, step=newest.step, run=entry.name))


def with_allowance(content: dict[str, Any], newest: Checkpoint | None, allowed: Collection[str]) -> dict[str, Any]:
    """Return the content of run.yaml with what is allowed up to the newest checkpoint, for the trainer."""
    if newest is None or not allowed:
        return content
    return content | {"allowed_changes": (content.get("allowed_changes") or {}) | dict.fromkeys(allowed, newest.step)}


def unused_code(folder: RunFolder) -> str | None:
    """Return in what the hpcgemma that runs now differs from the run's own copy, in a sentence; None where in nothing.

    The run goes on with its copy.
    """
    before, now = snapshot.code_hash(folder.package_dir), snapshot.code_hash()
    if not before or before == now:
        return None
    names = snapshot.changed_files(folder.package_dir, snapshot.PACKAGE)
    listed = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return (
        f"hpcgemma has changed since the run was submitted ({before[:12]} -> {now[:12]}: {listed}); the run goes on "
        "with its own copy, unless: --allow-change code"
    )


def renew_code(entry: RunEntry, content: dict[str, Any], allowed: Collection[str]) -> bool:
    """Give the run a copy of the hpcgemma that runs now where that is asked for, or where its own is gone.

    Returns:
        Whether the run has another copy now; its hash is entered into the content.

    Raises:
        InputError: Its own copy is gone, and the code that could take its place is another.
    """
    folder = entry.folder
    before, now = snapshot.code_hash(folder.package_dir), snapshot.code_hash()
    known = content["versions"].get("code")
    if before == now or (before and "code" not in allowed):
        return False
    if not before and known not in (None, now) and "code" not in allowed:
        raise InputError(
            f"the copy of hpcgemma with which run {entry.name} began is gone from {folder.code_dir}",
            f"put it back, or go on with the one that is installed now: hpcgemma resume {entry.name} "
            "--allow-change code",
        )
    content["versions"]["code"] = snapshot.replace_snapshot(folder.code_dir)
    return True


def own_command(folder: RunFolder, *arguments: str) -> str:
    """Return the command that calls the run's own copy of hpcgemma."""
    return shlex.join([*snapshot.start_command(folder.package_dir, "hpcgemma"), *arguments])
