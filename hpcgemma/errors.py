"""The errors a user can meet, as a tree.

HpcGemmaError            exit code 1: the run or the machine failed
├── InputError           exit code 2: what the user gave cannot work
│   └── ConfigError      exit code 2: every problem of a profile, recipe or plan at once
└── SchedulerError       exit code 3: the scheduler refused, or did not answer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class HpcGemmaError(Exception):
    """An expected failure: what is wrong, and what to do about it.

    Args:
        problem: One sentence naming the value, the place and the limit.
        hint: A command to paste or an edit to make.
    """

    exit_code = 1

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __reduce__(self) -> tuple[type[HpcGemmaError], tuple[str, str]]:
        return type(self), (self.problem, self.hint)


class InputError(HpcGemmaError):
    """What the user gave cannot work."""

    exit_code = 2


class SchedulerError(HpcGemmaError):
    """The scheduler refused, or did not answer."""

    exit_code = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong with what the user wrote: where, what, and what is valid."""

    place: str
    """File and line, or the option it came from."""
    field: str
    """Dotted path of the field; empty where no single field is at fault."""
    message: str
    hint: str = ""

    def __str__(self) -> str:
        what = f"{self.field}: {self.message}" if self.field else self.message
        where = f"{self.place}: " if self.place else ""
        return f"{where}{what}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(InputError):
    """Every problem found in a profile, a recipe or a plan, reported at once."""

    def __init__(self, subject: str, problems: Sequence[Problem], hint: str) -> None:
        self.subject = subject
        self.problems = tuple(problems)
        if len(problems) == 1:
            text = f"{subject}: {problems[0]}"
        else:
            lines = "\n".join(f"  - {problem}" for problem in problems)
            text = f"{subject}: {len(problems)} problems\n{lines}"
        super().__init__(text, hint)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, tuple[Problem, ...], str]]:  # type: ignore[override]
        return type(self), (self.subject, self.problems, self.hint)
