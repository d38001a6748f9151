"""Commands whose work needs torch: done by a program of the trainer, in a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from hpcgemma.errors import InputError

INTERRUPTED_CODE = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

_PACKAGES = ("torch", "transformers", "accelerate", "peft")
_END_WITHIN_S = 10.0


def run_program(name: str, request: Mapping[str, Any]) -> int:
    """Run ``hpcgemma.train.commands.NAME``, which prints the results, and return its exit code.

    Ctrl-C reaches the program too, as it does all processes of a terminal.

    Args:
        name: The program.
        request: What it is to do, as JSON has it.

    Raises:
        InputError: The trainer's packages are not installed.
    """
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"the trainer's packages are not installed beside hpcgemma: {', '.join(missing)}",
            "pip install 'hpcgemma[train]'",
        )
    # -P: nothing is imported from the folder that the user is in.
    process = subprocess.Popen([sys.executable, "-P", "-m", f"hpcgemma.train.commands.{name}"], stdin=subprocess.PIPE)
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and its exit code says how
            process.communicate(json.dumps(request).encode())
    except KeyboardInterrupt:
        try:
            process.wait(_END_WITHIN_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()
        return INTERRUPTED_CODE
    return process.returncode if process.returncode >= 0 else 128 - process.returncode
