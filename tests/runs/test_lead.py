"""How long before its end a job is warned follows from what saves and steps took."""

from __future__ import annotations

import pytest

from hpcgemma.runs.lead import SaveNeed, grace_caution, lead_of, save_need, time_to_save_s, warning_lead_s

EVENTS = [
    {"event": "submitted", "job_id": "7", "lead_s": 300},
    {"event": "saved", "seconds": 4.0, "step": 10},
    {"event": "save_failed", "seconds": 99.0},
    {"event": "saved", "seconds": 12.5, "step": 20},
    {"event": "continued", "job_id": "8", "lead_s": 75},
    {"event": "saved", "seconds": 3.0, "step": 30},
]
METRICS = [
    {"attempt": 1, "step": 10, "loss": 1.0, "time": 100.0},
    {"attempt": 1, "step": 20, "loss": 1.0, "time": 120.0},
    {"attempt": 1, "step": 20, "eval_loss": 1.0, "time": 130.0},
    {"attempt": 2, "step": 21, "loss": 1.0, "time": 500.0},
    {"attempt": 2, "step": 22, "loss": 1.0, "time": 501.0},
]


def test_a_run_needs_its_slowest_save_and_its_slowest_step() -> None:
    assert save_need(EVENTS, METRICS) == SaveNeed(slowest_save_s=12.5, step_s=2.0)


def test_before_the_first_save_nothing_is_known() -> None:
    assert save_need(EVENTS[:1], METRICS) is None


def test_a_save_without_logged_steps_counts_alone() -> None:
    assert save_need(EVENTS, []) == SaveNeed(slowest_save_s=12.5, step_s=0.0)


@pytest.mark.parametrize(
    ("save_s", "step_s", "walltime_min", "lead_s"),
    [
        (12.5, 2.0, 1440, 75),  # rounded up, and the margin
        (0.1, 0.1, 1440, 61),
        (900.0, 30.0, 1440, 990),
        (0.1, 0.1, 3, 45),  # the margin gives way: a quarter of the limit
        (40.0, 2.0, 3, 57),  # but not what the supervisor needs
        (100.0, 2.0, 3, 90),  # and the whole is never more than half
        (90_000.0, 0.0, 525_600, 65_535),  # sbatch's own limit
    ],
)
def test_the_lead_is_the_save_a_step_and_a_margin_within_limits(
    save_s: float, step_s: float, walltime_min: int, lead_s: int
) -> None:
    need = SaveNeed(slowest_save_s=save_s, step_s=step_s)
    assert warning_lead_s(need, assumed_s=300, walltime_min=walltime_min) == lead_s


def test_without_a_measurement_the_profiles_lead_holds() -> None:
    assert warning_lead_s(None, assumed_s=300, walltime_min=60) == 300


def test_each_job_has_the_lead_with_which_it_was_submitted() -> None:
    assert [lead_of(EVENTS, job_id, 20) for job_id in ("7", "8", "9")] == [300, 75, 20]


def test_a_grace_shorter_than_a_save_and_a_step_is_said() -> None:
    need = SaveNeed(slowest_save_s=40.0, step_s=2.5)
    caution = grace_caution(need, 30, whose="run x-1", where="partition 'spot'")
    assert caution is not None
    assert caution.problem == (
        "partition 'spot' gives a preempted job 30 s, and run x-1 needs 43 s to save (its slowest save took 40.0 s, a "
        "step up to 2.5 s): preempted, it loses all since its last checkpoint"
    )


@pytest.mark.parametrize(("need_s", "notice_s"), [(40.0, 120), (40.0, None), (None, 5)])
def test_a_long_or_unknown_grace_is_not_warned_of(need_s: float | None, notice_s: int | None) -> None:
    need = None if need_s is None else SaveNeed(slowest_save_s=need_s, step_s=0.0)
    assert grace_caution(need, notice_s, whose="run x-1", where="partition 'spot'") is None


@pytest.mark.parametrize(("lead_s", "to_save_s"), [(300, 285.0), (75, 60.0), (30, 15.0), (20, 10.0), (1, 0.5)])
def test_the_supervisor_leaves_the_ranks_all_of_the_lead_but_what_it_needs_itself(
    lead_s: int, to_save_s: float
) -> None:
    assert time_to_save_s(lead_s) == to_save_s
