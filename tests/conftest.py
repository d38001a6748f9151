"""What every test gets: folders of its own in place of the user's; and the run that others are compared with."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import work_units
from tests.scenario import Terminal, Training, opened_terminal, terminal_of
from tests.shared import made_once

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ


def pytest_configure() -> None:
    """Set what all that the tests start inherits: it hears Ctrl-C, and the workers do not fight for cores."""
    if IS_WORKER:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A shell lets what it starts in the background ignore Ctrl-C.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of a worker in the order in which units of them are dealt out."""
    if IS_WORKER:
        turns = work_units.turns([item.nodeid for item in items])
        items.sort(key=lambda item: turns[work_units.unit_of(item.nodeid)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let one worker have all tests of a unit."""
    from tests.scheduling import UnitScheduling

    return UnitScheduling(config, log)


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
    with opened_terminal(tmp_path_factory.mktemp("terminal")) as terminal:
        yield terminal


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A run of two ranks that nothing interrupts; its terminal is another than that of the tests."""
    return _uninterrupted(tmp_path_factory, "reference")


@pytest.fixture(scope="session")
def reference_of_four(tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A run of four ranks that nothing interrupts."""
    return _uninterrupted(tmp_path_factory, "reference-of-four", "--set", "resources.gpus_per_node=4")


def _uninterrupted(factory: pytest.TempPathFactory, name: str, *settings: str) -> Training:
    def make(root: Path) -> None:
        with opened_terminal(root) as terminal:
            run = terminal.submit(name, "local", *settings)
            assert run.wait_for_end()["state"] == "COMPLETED", run.logs()

    run = terminal_of(made_once(factory, name, make)).training(name)
    assert len(run.events("started")) == 1
    return run
