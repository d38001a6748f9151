"""What every program of a command has in common: a request on standard input, and an exit code."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from hpcgemma.errors import HpcGemmaError

Request = dict[str, Any]
"""What the command asks for, as JSON has it."""

INTERRUPTED_CODE = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


def run(main: Callable[[Request], int], *, libraries_talk: bool = False) -> NoReturn:
    """Read the request, do the work, and end the process: with its exit code, or with an error in two lines.

    Args:
        main: What the program does; it prints text, or JSON where the request says ``as_json``.
        libraries_talk: Whether it loads libraries that write to standard output, such as DeepSpeed. Then all that is
            printed goes to standard error, but for what ``show`` prints.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", FutureWarning)  # what libraries say to each other
    with contextlib.redirect_stdout(sys.stderr) if libraries_talk else contextlib.nullcontext():
        code = _code_of(main)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of torch or a lost process group must not keep a process alive that has said all it had to say.
    os._exit(code)


def _code_of(main: Callable[[Request], int]) -> int:
    try:
        return main(json.loads(sys.stdin.read()))
    except KeyboardInterrupt:
        return INTERRUPTED_CODE
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends the process
        from hpcgemma.train.failures import failure_of

        failure = failure_of(error)
        if not failure.is_expected:
            traceback.print_exception(error)
        hint = failure.hint if failure.is_expected else "please report this as an issue, with the lines above"
        if failure.kind == "disk":
            hint = "free some space or raise the quota, then call it again"
        print(f"Error: {failure.sentence}\nTry:   {hint}", file=sys.stderr, flush=True)
        return error.exit_code if isinstance(error, HpcGemmaError) else 1


def show(text: str, end: str = "\n") -> None:
    """Print a result to standard output, also while libraries are kept away from it."""
    print(text, end=end, file=sys.__stdout__, flush=True)


def note(line: str) -> None:
    """Print a message to standard error, which keeps standard output for results."""
    print(line, file=sys.stderr, flush=True)
