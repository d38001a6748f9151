from __future__ import annotations

from typing import Any

import pytest

from hpcgemma.runs.time_use import Costs, TimeUse, costs, hours_to_loss, predicted_ettr, time_use

Event = dict[str, Any]


def event(time: float, kind: str, **facts: Any) -> Event:
    return {"time": time, "event": kind, **facts}


def saved(time: float, step: int, seconds: float = 2.0) -> Event:
    return event(time, "saved", step=step, seconds=seconds)


def steps(attempt: int, *pairs: tuple[int, float]) -> list[Event]:
    """Return lines of metrics: step and time of each."""
    return [{"attempt": attempt, "step": step, "time": time, "loss": 1.0} for step, time in pairs]


FIRST = [
    event(0, "submitted", job_id="7"),
    event(100, "began", attempt=1, job_id="7"),
    event(105, "started", attempt=1, job_id="7"),
    event(120, "training", attempt=1, step=0),
    saved(172, 50),
    saved(224, 100),
]
"""A run that waited 100 s, started in 20 s, and makes a step a second, with a save of 2 s after each fifty."""


def test_a_run_that_nothing_interrupts_loses_its_start_and_its_saves_alone() -> None:
    events = [*FIRST, event(230, "ended", attempt=1, ending="finished"), event(230, "finished", step=100)]
    use = time_use(events, steps(1, (100, 222)))
    assert use == TimeUse(productive_s=106, saving_s=4, restarting_s=20, queued_s=100)
    assert use.ettr == pytest.approx(106 / 130)


def test_a_run_that_goes_on_has_lost_nothing_though_it_writes_while_it_is_looked_at() -> None:
    use = time_use(FIRST, steps(1, (100, 222), (106, 232)), now=231)
    assert (use.lost_s, use.lost_steps) == (0, 0)
    assert use.productive_s == 107


def test_a_preempted_run_loses_nothing_but_the_restart() -> None:
    events = [
        *FIRST,
        event(225, "warned", job_id="7", cause="preempted"),
        event(226, "continued", by="successor", job_id="8"),
        saved(229, 101),
        event(231, "ended", attempt=1, ending="stopped", cause="preempted"),
        event(291, "began", attempt=2, job_id="8"),
        event(306, "training", attempt=2, step=101),
        event(406, "ended", attempt=2, ending="finished"),
    ]
    use = time_use(events, [*steps(1, (101, 227)), *steps(2, (200, 400))], None)
    # 120 to 229 without three saves; 306 to 406. Restarting: 20, then 2 from the save to the end, then 15.
    assert use == TimeUse(productive_s=103 + 100, saving_s=6, restarting_s=37, queued_s=160)


def test_what_a_killed_rank_had_made_since_the_last_checkpoint_is_lost_with_the_time_until_it_was_seen() -> None:
    events = [
        *FIRST,
        event(260, "ended", attempt=1, ending="rank_died"),
        event(260, "relaunched", attempt=2, job_id="7"),
        event(261, "began", attempt=2, job_id="7"),
        event(280, "training", attempt=2, step=100),
        event(380, "ended", attempt=2, ending="finished"),
    ]
    use = time_use(events, [*steps(1, (130, 255)), *steps(2, (200, 380))])
    assert use == TimeUse(
        productive_s=(224 - 120 - 4) + 100, saving_s=4, restarting_s=20 + 1 + 19, lost_s=36, queued_s=100, lost_steps=30
    )


def test_a_damaged_checkpoint_loses_what_earlier_attempts_had_made_too() -> None:
    events = [
        *FIRST,
        event(224, "ended", attempt=1, ending="stopped"),
        event(224, "relaunched", attempt=2, job_id="7"),
        event(224, "began", attempt=2, job_id="7"),
        event(234, "training", attempt=2, step=50),  # the checkpoint of step 100 was damaged
        event(300, "ended", attempt=2, ending="finished"),
    ]
    use = time_use(events, [*steps(1, (100, 222)), *steps(2, (116, 300))])
    assert use == TimeUse(productive_s=50 + 66, saving_s=2, restarting_s=30, lost_s=52, queued_s=100, lost_steps=50)


def test_a_job_that_was_killed_whole_waits_from_its_last_sign_of_life() -> None:
    events = [
        *FIRST,
        event(400, "began", attempt=2, job_id="7"),  # Slurm put it back into the queue
        event(420, "training", attempt=2, step=100),
        event(430, "ended", attempt=2, ending="finished"),
    ]
    use = time_use(events, [*steps(1, (110, 240)), *steps(2, (110, 430))])
    assert use == TimeUse(
        productive_s=100 + 10, saving_s=4, restarting_s=40, lost_s=16, queued_s=100 + 160, lost_steps=10
    )


def test_the_time_until_a_person_resumed_it_is_neither_lost_nor_queued() -> None:
    events = [
        *FIRST,
        event(240, "ended", attempt=1, ending="error"),
        event(240, "failed"),
        event(1000, "submitted", job_id="9"),
        event(1010, "began", attempt=2, job_id="9"),
        event(1020, "training", attempt=2, step=100),
        event(1030, "ended", attempt=2, ending="finished"),
    ]
    use = time_use(events, [])
    assert (use.stopped_s, use.queued_s) == (760, 110)


def test_a_failed_run_has_lost_what_it_did_not_save_before_anybody_resumes_it() -> None:
    use = time_use([*FIRST, event(240, "ended", attempt=1, ending="error")], steps(1, (115, 240)))
    assert (use.lost_s, use.lost_steps) == (16, 15)


def test_a_save_that_the_disk_refused_is_time_for_saving() -> None:
    events = [
        *FIRST[:4],
        event(130, "save_failed", step=10, seconds=3.0),
        event(140, "ended", attempt=1, ending="finished"),
    ]
    assert time_use(events, steps(1, (20, 140)), 140).saving_s == 3


def test_a_run_is_seen_while_it_waits_and_while_it_trains() -> None:
    assert time_use(FIRST[:1], [], 30, waits=True) == TimeUse(queued_s=30)
    assert time_use(FIRST[:1], [], 30, waits=True).ettr is None
    assert time_use(FIRST[:2], [], 110) == TimeUse(queued_s=100, restarting_s=10)
    assert time_use(FIRST, steps(1, (120, 244)), 250) == TimeUse(
        productive_s=126, saving_s=4, restarting_s=20, queued_s=100
    )
    requeued = [event(226, "continued", job_id="7"), saved(229, 101), event(231, "ended", attempt=1, ending="stopped")]
    assert time_use([*FIRST, *requeued], [], 251, waits=True).queued_s == 120
    killed = time_use(FIRST, steps(1, (110, 234)), 300, waits=True)  # with its node, and put back into the queue
    assert (killed.queued_s, killed.lost_s, killed.lost_steps) == (166, 10, 10)


def test_an_attempt_that_never_trained_is_all_restart() -> None:
    events = [*FIRST[:3], event(110, "ended", attempt=1, ending="data")]
    assert time_use(events, []) == TimeUse(restarting_s=10, queued_s=100)


def test_a_run_whose_folder_says_nothing_has_used_no_time() -> None:
    assert time_use([], []) == TimeUse()
    assert costs([]) is None


def test_costs_are_medians_of_what_was_measured() -> None:
    assert costs(FIRST[:5]) is None
    assert costs([*FIRST, saved(300, 150, 8.0)]) == Costs(save_s=2, interval_s=64, restart_s=20)


@pytest.mark.parametrize(
    ("save_s", "interval_s", "restart_s", "lost_s", "mtti_h", "ettr"),
    [
        (10, 379, 240, None, 2, 0.921),
        (10, 1800, 240, 30, 2, 0.959),
        (10, 1800, 120, 30, 2, 0.974),
        (10, 1315, 240, None, 24, 0.982),
        (10, 1800, 240, 30, 24, 0.991),
    ],
)
def test_the_prediction_is_that_of_the_model(
    save_s: float, interval_s: float, restart_s: float, lost_s: float | None, mtti_h: float, ettr: float
) -> None:
    said = predicted_ettr(
        save_s=save_s, interval_s=interval_s, restart_s=restart_s, lost_s=lost_s, mtti_s=mtti_h * 3600
    )
    assert said == pytest.approx(ettr, abs=0.001)


def test_how_often_something_ends_a_run_without_warning_is_assumed_and_then_seen() -> None:
    hour = 3600.0
    events = [event(0, "began", attempt=1), event(60, "training", attempt=1, step=0)]
    assert hours_to_loss(events, assumed_h=24) == pytest.approx(24 + 60 / hour)
    events += [
        event(2 * hour, "ended", attempt=1, ending="rank_died"),
        event(2 * hour, "began", attempt=2),
        event(2 * hour + 60, "training", attempt=2, step=50),
        event(6 * hour, "ended", attempt=2, ending="stopped"),  # saved, so nothing was lost
        event(6 * hour, "began", attempt=3),
    ]
    assert hours_to_loss(events, assumed_h=24) == (24 + 6) / 2
