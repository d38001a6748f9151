"""What differs between two states of a run, field by field, and what of it changes the result."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

ChangeKind = Literal["recipe", "data", "code", "libraries"]
"""What `--allow-change` names."""

KINDS: tuple[ChangeKind, ...] = get_args(ChangeKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One field that is another than it was."""

    kind: ChangeKind
    field: str
    before: str
    now: str
    decides: bool = True
    """Whether the result may be another, if only in the last bits."""

    def __str__(self) -> str:
        note = "" if self.decides else " (does not change the result)"
        return f"{self.field}: {self.before} -> {self.now}{note}"


def accepted(allowed: Mapping[str, int], step: int) -> set[str]:
    """Return the kinds of changes since the checkpoint of a step that are allowed.

    An allowance holds up to the checkpoint that was the newest when it was given: a later one was made after the
    change, and what changes then is another change.
    """
    return {kind for kind, last in allowed.items() if step <= last}


def refused(changes: Iterable[Change], allowed: Collection[str]) -> list[Change]:
    """Return the changes that decide the result and that nobody has allowed."""
    return [each for each in changes if each.decides and each.kind not in allowed]


def refusal_of(changes: Collection[Change], *, step: int, run: str) -> tuple[str, str]:
    """Return the problem and the hint by which changes are refused.

    Args:
        changes: What is refused.
        step: Step of the checkpoint that was made before them.
        run: Name of the run.
    """
    problem = f"what decides the result has changed since step {step} was saved: {'; '.join(map(str, changes))}"
    options = " ".join(f"--allow-change {kind}" for kind in KINDS if any(each.kind == kind for each in changes))
    return problem, f"restore it, or accept that the result changes: hpcgemma resume {run} {options}"
