"""What tests have started ends, also when their process is killed: at Ctrl-C, or when a worker of the tests crashes."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, signal, subprocess, sys
from pathlib import Path
from tests.scenario import opened_terminal

with opened_terminal(Path(sys.argv[1])) as terminal:
    child = subprocess.Popen(["sleep", "1000"], env=os.environ | terminal.environment, start_new_session=True)
    child.send_signal(signal.SIGSTOP)
    print(child.pid, flush=True)
    input()
"""


def test_what_a_terminal_started_ends_with_the_tests_even_if_it_stands_still(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, tmp_path],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as tests:
        try:
            assert tests.stdout is not None
            started = os.pidfd_open(int(tests.stdout.readline()))
        finally:
            tests.kill()
    try:
        assert select.select([started], [], [], 30)[0], "it still runs after 30 s"
    finally:
        os.close(started)
