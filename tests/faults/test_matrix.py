"""The quick scenarios of the fault matrix; `make faults` plays all of them, under both kinds of process tracking."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scenario import Terminal, Training
from tests.slurm.cluster import missing_reason
from tests.slurm.conftest import require_cgroup

from .matrix import preemption, processes
from .matrix.catalogue import SCENARIOS, Scenario
from .matrix.lab import Lab, Tracking
from .matrix.observation import figures
from .report import DOCUMENT

QUICK = [scenario for scenario in SCENARIOS if scenario.quick]
UNDER_CGROUP = (preemption.with_grace, processes.rank_killed)


@pytest.fixture(scope="module")
def lab(terminal: Terminal, reference: Training, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A cluster that signals every process of a job, as test clusters do."""
    yield from _lab(terminal, reference, tmp_path_factory, "linuxproc")


@pytest.fixture(scope="module")
def cgroup_lab(terminal: Terminal, reference: Training, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A cluster that tracks processes as production does."""
    require_cgroup()
    yield from _lab(terminal, reference, tmp_path_factory, "cgroup")


def _lab(terminal: Terminal, reference: Training, factory: pytest.TempPathFactory, tracking: Tracking) -> Iterator[Lab]:
    if missing := missing_reason():
        pytest.skip(missing)
    made = Lab(terminal, reference, tracking, factory.mktemp(tracking))
    yield made
    made.close()


@pytest.mark.slurm
@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_a_run_survives(lab: Lab, scenario: Scenario) -> None:
    with lab.played():
        assert scenario.play(lab).happened


@pytest.mark.slurm
@pytest.mark.parametrize("play", UNDER_CGROUP, ids=lambda play: play.__name__)
def test_where_processes_are_tracked_by_cgroup_a_run_survives(cgroup_lab: Lab, play: object) -> None:
    [scenario] = [each for each in SCENARIOS if each.play is play]
    with cgroup_lab.played():
        assert scenario.play(cgroup_lab).equal


def test_every_row_has_a_scenario_and_every_scenario_a_name_of_its_own() -> None:
    assert sorted({scenario.row for scenario in SCENARIOS}) == list(range(1, 32))
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


def test_the_document_has_a_line_of_each_scenario_and_none_of_them_failed() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [each.name for each in SCENARIOS if f"| {each.row} | {each.fault} | " not in text] == []
    assert "failed**" not in text
    assert "not played" not in text


def test_figures_are_the_longest_of_each_fault() -> None:
    events = [
        {"event": "started", "time": 0.0},
        {"event": "saved", "time": 5.0},
        {"event": "warned", "time": 11.0},
        {"event": "saved", "time": 12.0},
        {"event": "ended", "time": 13.0},
        {"event": "training", "time": 20.0},
        {"event": "ended", "time": 32.0},
        {"event": "saved", "time": 40.0},
        {"event": "training", "time": 45.0},
    ]
    assert figures(events, [1, 2, 3, 2, 3, 4], [10.0, 30.0]) == {
        "lost_steps": 2,
        "noticed_s": 2.0,
        "saved_s": 2.0,
        "training_s": 15.0,
    }
