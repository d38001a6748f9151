from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hpcgemma import snapshot


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    snapshot.take_snapshot(tmp_path / "code")
    return tmp_path / "code" / "hpcgemma"


def run(package: Path, module: str, *arguments: str, **variables: str) -> str:
    command = [*snapshot.start_command(package, module), *arguments]
    environment = {"PATH": os.defpath, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_copy_has_the_same_code_and_nobody_else_can_read_it(copy: Path) -> None:
    assert snapshot.code_hash(copy) == snapshot.code_hash()
    assert snapshot.changed_files(copy, snapshot.PACKAGE) == []
    assert not list(copy.rglob("__pycache__"))
    assert {path.stat().st_mode & 0o777 for path in [copy.parent, *copy.parent.rglob("*")]} == {0o700, 0o600}


def test_a_copy_is_laid_out_as_in_a_wheel(copy: Path) -> None:
    assert (copy / "job_templates" / "supervisor.sbatch.j2").is_file()
    assert (copy / "cluster_profiles" / "leonardo.yaml").is_file()
    assert (copy / "recipes" / "gemma2_9b_lora.yaml").is_file()


def test_the_hash_is_that_of_the_code_alone(copy: Path) -> None:
    before = snapshot.code_hash(copy)
    (copy / "__pycache__").mkdir()
    (copy / "__pycache__" / "plan.py").write_text("cached")
    (copy / ".plan.py.swp.py").write_text("an editor's")
    (copy / "recipes" / "mine.yaml").write_text("name: mine")
    assert snapshot.code_hash(copy) == before
    with (copy / "plan.py").open("a") as file:
        file.write("# another line\n")
    (copy / "new.py").write_text("")
    assert snapshot.code_hash(copy) != before
    assert snapshot.changed_files(copy, snapshot.PACKAGE) == ["new.py", "plan.py"]
    assert snapshot.code_hash(copy / "nowhere") == ""


def test_a_module_runs_with_the_copy_whatever_the_environment_says(copy: Path, tmp_path: Path) -> None:
    for place in (copy, tmp_path / "other" / "hpcgemma"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "where.py").write_text("import hpcgemma, sys\nprint(hpcgemma.__path__[0], __name__, sys.argv[1:])\n")
        (place / "__init__.py").touch()
    assert run(copy, "hpcgemma.where", "a b", PYTHONPATH=str(tmp_path / "other")) == f"{copy} __main__ ['a b']\n"


def test_a_folder_whose_name_would_split_a_search_path_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "a:b 'c'"
    snapshot.take_snapshot(folder)
    assert run(folder / "hpcgemma", "hpcgemma", "--version").startswith("hpcgemma, version ")


def test_a_replaced_copy_is_kept_beside_the_new_one(copy: Path) -> None:
    (copy / "plan.py").write_text("")
    old = snapshot.code_hash(copy)
    assert snapshot.replace_snapshot(copy.parent) == snapshot.code_hash(copy) == snapshot.code_hash()
    kept = copy.parent.with_name(f"code-before-{old[:12]}")
    assert snapshot.code_hash(kept / "hpcgemma") == old
    assert sorted(path.name for path in copy.parent.parent.iterdir()) == ["code", kept.name]


def test_without_a_module_it_says_how_it_is_called(copy: Path) -> None:
    done = subprocess.run([sys.executable, copy / "start.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "usage: python -P start.py MODULE [ARGUMENT ...]\n")
