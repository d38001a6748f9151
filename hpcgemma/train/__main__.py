"""One rank: ``python -m hpcgemma.train RUN_FOLDER``.

The handlers for stop signals come first, before torch is imported: a warning may come in the first second.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hpcgemma.train.signals import StopRequest, stacks_signals, stop_signals, write_stacks_on


def main() -> None:
    """Train as one rank, and end the process with its exit code."""
    stop = StopRequest()
    stop.listen(stop_signals(os.environ))
    write_stacks_on(stacks_signals(os.environ))
    if len(sys.argv) != 2:
        sys.exit("usage: python -m hpcgemma.train RUN_FOLDER")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    from hpcgemma.runs.folder import RunFolder
    from hpcgemma.train.rank import run_rank

    code = run_rank(RunFolder(Path(sys.argv[1]).resolve()), stop)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of torch or a lost process group must not keep a rank alive whose end the supervisor waits for.
    os._exit(code)


if __name__ == "__main__":
    main()
