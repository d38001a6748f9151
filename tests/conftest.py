"""What every test gets: folders of its own in place of the user's; and the run that others are compared with."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.state import current_job_id
from tests.scenario import Terminal, Training


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's configuration, index and accounts out of the tests."""
    root = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("HPCGEMMA_CONFIG_DIR", str(root / "config"))
    monkeypatch.setenv("HPCGEMMA_DATA_DIR", str(root / "data"))
    for name in ("HPCGEMMA_ACCOUNT", "HPCGEMMA_RUNS_DIR"):
        monkeypatch.delenv(name, raising=False)
    return root


@pytest.fixture(scope="session")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A user's terminal on this machine; whatever its runs left is ended by its own id."""
    root = tmp_path_factory.mktemp("terminal")
    (root / "work").mkdir()
    environment = {
        "HPCGEMMA_CONFIG_DIR": str(root / "config"),
        "HPCGEMMA_DATA_DIR": str(root / "data"),
        "HPCGEMMA_RUNS_DIR": str(root / "runs"),
    }
    yield Terminal(root / "work", environment)
    for folder in (root / "runs").glob("*"):
        job_id = current_job_id(RunFolder(folder).events())
        if job_id is not None and Path(f"/proc/{job_id}").exists():
            os.killpg(int(job_id), signal.SIGKILL)


@pytest.fixture(scope="session")
def reference(terminal: Terminal) -> Training:
    """A run of two ranks that nothing interrupts."""
    return _uninterrupted(terminal, "reference")


@pytest.fixture(scope="session")
def reference_of_four(terminal: Terminal) -> Training:
    """A run of four ranks that nothing interrupts."""
    return _uninterrupted(terminal, "reference-of-four", "--set", "resources.gpus_per_node=4")


def _uninterrupted(terminal: Terminal, name: str, *settings: str) -> Training:
    run = terminal.submit(name, "local", *settings)
    assert run.wait_for_end()["state"] == "COMPLETED", run.logs()
    assert len(run.events("started")) == 1
    return run
