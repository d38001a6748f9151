from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["torch", "transformers", "accelerate", "peft", "numpy", "deepspeed"]


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "module",
    [
        "hpcgemma.cli.main",
        "hpcgemma.cli.submit",
        "hpcgemma.cli.drill",
        "hpcgemma.cli.rehearsing",
        "hpcgemma.cli.status",
        "hpcgemma.cli.resume",
        "hpcgemma.cli.cancel",
        "hpcgemma.cli.logs",
        "hpcgemma.cli.report",
        "hpcgemma.reports.page",
        "hpcgemma.cli.waiting",
        "hpcgemma.supervise.supervisor",
        "hpcgemma.preflight",
        "hpcgemma.checkpoints",
    ],
)
def test_launcher_and_supervisor_never_import_torch(module: str) -> None:
    assert modules_after(f"import {module}").isdisjoint(HEAVY)


def test_submitting_for_real_imports_no_torch_either() -> None:
    code = (
        "from hpcgemma.executors import submission\n"
        "import hpcgemma.executors.slurm, hpcgemma.executors.local, hpcgemma.cli.submit, hpcgemma.render"
    )
    # submitit takes numpy where it is installed, and nothing heavier.
    assert modules_after(code).isdisjoint(set(HEAVY) - {"numpy"})


def test_help_loads_click_and_nothing_else_of_weight() -> None:
    code = (
        "import hpcgemma.cli.main as m\n"
        "import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    m.cli.main(['--help'], standalone_mode=False)\n"
    )
    loaded = modules_after(code)
    assert "click" in loaded
    assert loaded.isdisjoint({*HEAVY, "pydantic", "rich", "jinja2", "submitit", "yaml"})
