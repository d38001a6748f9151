"""Run a module with the hpcgemma that this file belongs to: ``python -P start.py MODULE [ARGUMENT ...]``.

Run by its path, out of the copy of the package that a run folder holds. An entry of sys.path, not PYTHONPATH: a site's
modules set and unset that variable, and a colon in a folder's name would split it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -P start.py MODULE [ARGUMENT ...]")
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
