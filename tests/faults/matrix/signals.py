"""Rows 12 and 13: signals that reach the ranks at different times, twice, or when they are busy otherwise."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable

from hpcgemma.runs.folder import RunFolder
from tests.scenario import Training

from .lab import Lab
from .observation import Observation

SKEWS_S = (0.3, 0.8, 1.7)


def skewed(lab: Lab) -> Observation:
    """SIGTERM reaches rank 1 up to 1.7 s after rank 0, three times."""
    run = lab.submit("skewed")
    faults, stops = [], []
    for count, skew_s in enumerate(SKEWS_S, start=1):
        run.wait_for_event("training", count=count)
        run.wait_for_step(run.step() + 10)
        first, second = run.rank_pids()
        faults.append(time.time())
        os.kill(first, signal.SIGTERM)
        time.sleep(skew_s)  # the fault itself
        with contextlib.suppress(ProcessLookupError):  # it may have stopped with the first
            os.kill(second, signal.SIGTERM)
        stops.append(run.wait_for_event("ended", count=count))
    assert {stop["ending"] for stop in stops} == {"stopped"}, stops
    return lab.completed(run, f"both ranks stopped at steps {_words([stop['step'] for stop in stops])}", faults)


def twice_while_saving(lab: Lab) -> Observation:
    """A second warning comes while the ranks save for the first."""
    run = lab.submit("twice-saving")
    run.wait_for_step(30)
    fault = warn(lab, run)
    _wait_closely(run, "saving", lambda: _phase(run) == "saving" or bool(run.events("saved")))
    warn(lab, run)
    seen = lab.completed(run, "one save for both, then on in the same allocation", [fault])
    saved = [event["step"] for event in run.events("saved") if event["time"] > fault]
    assert saved[0] == run.events("ended")[0]["step"]
    assert len(saved) == len(set(saved))
    return seen


def while_preparing(lab: Lab) -> Observation:
    """A warning comes before any rank exists."""
    return _while(lab, "warned-preparing", lambda run: bool(run.events("began")))


def while_loading(lab: Lab) -> Observation:
    """A warning comes while the ranks load the model."""
    return _while(lab, "warned-loading", lambda run: _phase(run) == "loading")


def while_evaluating(lab: Lab) -> Observation:
    """A warning comes while the ranks evaluate."""
    return _while(lab, "warned-evaluating", lambda run: _phase(run) == "evaluating")


def _while(lab: Lab, name: str, is_then: Callable[[Training], bool]) -> Observation:
    run = lab.submit(name)
    _wait_closely(run, name, lambda: is_then(run))
    fault = warn(lab, run)
    seen = lab.completed(run, "handled at the next boundary, then on in the same allocation", [fault])
    [ended, _] = run.events("ended")
    assert ended["time"] - fault < 60
    return seen


def warn(lab: Lab, run: Training) -> float:
    """Send the batch shell the signal that warns, and return when."""
    moment = time.time()
    sent = lab.cluster.run("scancel", "--signal=USR2", "--batch", run.events("began")[-1]["job_id"])
    assert sent.returncode == 0, sent.stderr
    return moment


def _phase(run: Training) -> str:
    with contextlib.suppress(OSError, ValueError):
        return str(json.loads(RunFolder(run.folder).heartbeat_file(0).read_text(encoding="utf-8"))["phase"])
    return ""


def _wait_closely(run: Training, what: str, condition: Callable[[], bool]) -> None:
    """Wait for what lasts a moment only."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}\n{run.logs()}"
        time.sleep(0.002)


def by_hand(lab: Lab) -> Observation:
    """A warning is sent by hand while the ranks train."""
    run = lab.submit("warned-by-hand")
    run.wait_for_step(30)
    run.freeze()
    fault = warn(lab, run)
    run.wait_for_event("warned")
    run.thaw()
    seen = lab.completed(run, "saved, then on in the same allocation", [fault])
    assert run.events("ended")[0]["cause"] == "a signal by hand"
    assert run.events("relaunched")
    assert not run.events("continued")
    return seen


def _words(steps: list[int]) -> str:
    return ", ".join(map(str, steps))
