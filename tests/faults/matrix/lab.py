"""Where scenarios are played: a test cluster, its login node, and the run that nothing interrupts."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from tests.faulty_disk import FaultyDisk
from tests.scenario import Terminal, Training, assert_same_training, wait_until
from tests.slurm.cluster import SlurmCluster
from tests.slurm.login import SUCCESSOR, TWO_NODES, LoginNode

from .observation import Observation, figures

Tracking = Literal["linuxproc", "cgroup"]
_USUAL: dict[str, Any] = {"accounting": False, "grace_time_s": 60}
_ENDED = ("INTERRUPTED", "CANCELLED", "FAILED")
TRACKINGS: tuple[Tracking, ...] = ("linuxproc", "cgroup")


class Lab:
    """One cluster at a time, which is started anew where a scenario wants another configuration.

    Args:
        terminal: The user's terminal, in whose folder runs are kept.
        reference: The run of two ranks that nothing interrupts.
        tracking: How Slurm finds the processes of a job.
        folder: For what scenarios need beside their runs.
    """

    def __init__(self, terminal: Terminal, reference: Training, tracking: Tracking, folder: Path) -> None:
        self.terminal, self.reference, self.tracking, self.folder = terminal, reference, tracking, folder
        self._cluster: SlurmCluster | None = None
        self._options, self._running = _USUAL, _USUAL

    @property
    def cluster(self) -> SlurmCluster:
        """The cluster that the scenario asked for, else one without accounting and with 60 s of grace."""
        if self._cluster is None or self._options != self._running:
            self.close()
            self._cluster, self._running = SlurmCluster(proctrack=self.tracking, **self._options), self._options
            self._cluster.start()
        return self._cluster

    @property
    def login(self) -> LoginNode:
        """The cluster's login node."""
        return LoginNode(self.terminal, self.cluster)

    def configure(self, **options: Any) -> SlurmCluster:
        """Return a cluster of these options, for this scenario."""
        self._options = {**_USUAL, **options}
        return self.cluster

    def close(self) -> None:
        """End the cluster."""
        if self._cluster is not None:
            self._cluster.stop()
            self._cluster = None

    @contextlib.contextmanager
    def played(self) -> Iterator[None]:
        """Leave the cluster as it was found, or none where a scenario failed."""
        self._options = _USUAL
        try:
            yield
            if self._cluster is not None:
                self._cluster.run("scancel", "--me")
                self._cluster.wait_for(self._is_idle, "the queue to be empty")
        except BaseException:
            self.close()
            raise

    def submit(
        self, name: str, *settings: str, profile: str = SUCCESSOR, environment: Mapping[str, str] | None = None
    ) -> Training:
        """Submit the test recipe on two nodes, under a name that an earlier try may have used."""
        name = f"{name}-{self.tracking}"
        shutil.rmtree(Path(self.terminal.environment["HPCGEMMA_RUNS_DIR"]) / name, ignore_errors=True)
        login = Terminal(self.login.folder, {**self.login.environment, **(environment or {})})
        return login.submit(name, profile, *TWO_NODES, *settings)

    def resume(self, run: Training) -> dict[str, Any]:
        """Resume a run when nothing goes on with it by itself, and return what its status said."""
        said: dict[str, Any] = wait_until("the end", lambda: (said := run.status())["state"] in _ENDED and said)
        self.login.call("resume", run.name)
        return said

    def profile(self, name: str, **fields: Any) -> str:
        """Write a profile that differs from the test cluster's in some fields, and return its path."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"extends": SUCCESSOR, "name": name, **fields}), encoding="utf-8")
        return str(path)

    def disk(self) -> FaultyDisk:
        """Return a disk that does what it should, until it is told otherwise."""
        folder = self.folder / "disk"
        folder.mkdir(exist_ok=True)
        disk = FaultyDisk(folder)
        disk.heal()
        return disk

    def completed(self, run: Training, happened: str, faults: Sequence[float], *, lost: int = 0) -> Observation:
        """Wait until a run has ended as if nothing had been, and return what was seen.

        Args:
            run: The run.
            happened: What happened, as a sentence.
            faults: When each fault struck.
            lost: The most steps that may have been lost.
        """
        assert run.wait_for_end()["state"] == "COMPLETED", run.logs()
        assert_same_training(run, self.reference)
        seen = Observation(happened=happened, equal=True, **self.figures(run, faults))
        assert seen.lost_steps is not None
        assert seen.lost_steps <= lost, f"{seen.lost_steps} steps lost\n{run.logs()}"
        return seen

    def figures(self, run: Training, faults: Sequence[float]) -> dict[str, Any]:
        """Return the figures of a run."""
        return figures(run.events(), [line["step"] for line in run.metrics()], faults)

    def _is_idle(self) -> bool:
        assert self._cluster is not None
        return not self._cluster.run("squeue", "-h").stdout.strip()
