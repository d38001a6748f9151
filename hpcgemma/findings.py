"""What a check finds: a sentence and a remedy; and how several of them stop a command at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcgemma.errors import ConfigError, InputError, Problem


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a person must mend, or should know, and the remedy."""

    problem: str
    hint: str


def refuse(findings: Sequence[Finding]) -> None:
    """Stop what cannot work.

    Raises:
        InputError: There are findings; all are listed.
    """
    if not findings:
        return
    if len(findings) == 1:
        raise InputError(findings[0].problem, findings[0].hint)
    problems = [Problem(place="", field="", message=each.problem, hint=each.hint) for each in findings]
    raise ConfigError("this run would fail", problems, "mend what is listed; nothing was submitted")
