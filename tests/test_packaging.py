"""`pip install hpcgemma` alone is the launcher: no torch, and its templates, profiles and recipes inside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing but the wheel and what it depends on."""
    root = tmp_path_factory.mktemp("wheel")
    python = root / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
    pip: list[str | Path] = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", root, ROOT], check=True, capture_output=True)
    [wheel] = root.glob("hpcgemma-*.whl")
    subprocess.run([*pip, "install", "--constraint", ROOT / "constraints.txt", wheel], check=True, capture_output=True)
    return python.parent / "hpcgemma"


def call(launcher: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [launcher, *arguments], cwd=folder, env={"PATH": os.defpath}, capture_output=True, text=True, check=False
    )


def test_the_launcher_plans_and_renders_without_torch(launcher: Path, tmp_path: Path) -> None:
    arguments = ("submit", "--profile", "leonardo", "--recipe", "gemma2_9b_lora", "--account", "A", "--dry-run")
    done = call(launcher, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --partition=boost_usr_prod" in done.stdout
    assert "the trainer's packages are not installed beside hpcgemma: torch, transformers, accelerate, peft" in (
        done.stderr
    )
    listing = subprocess.run(
        [launcher.parent / "python", "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    names = {line.partition("==")[0].lower() for line in listing.stdout.split()}
    assert names.isdisjoint({"torch", "transformers", "accelerate", "peft", "numpy"})


def test_the_version_is_the_packages(launcher: Path, tmp_path: Path) -> None:
    from hpcgemma import __version__

    assert call(launcher, tmp_path, "--version").stdout == f"hpcgemma, version {__version__}\n"
