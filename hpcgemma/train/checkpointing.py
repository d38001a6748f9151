"""Saving and resuming: all ranks write, rank 0 judges, all go the same way.

What is saved is what cannot be computed: trained weights, the optimizer's state, and the position. Row order,
learning rate and dropout are pure functions of seed and step, so a resumed training repeats the uninterrupted one
bit by bit.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from hpcgemma import checkpoints, files
from hpcgemma.changes import accepted, refusal_of, refused
from hpcgemma.checkpoints import Checkpoint
from hpcgemma.errors import InputError
from hpcgemma.recipes.fingerprint import needs_a_new_run
from hpcgemma.runs.folder import RunFolder
from hpcgemma.runs.provenance import STATE_NAME, Provenance, changes_since, provenance_of
from hpcgemma.train.background import BackgroundWrite, HostCopy
from hpcgemma.train.failures import GONE_ERRNOS, GONE_HINT, DiskError, FileSystemGoneError, OvertakenError
from hpcgemma.train.last_save import verdict
from hpcgemma.train.metrics import say
from hpcgemma.train.progress import Progress
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.refusal import Refusal
from hpcgemma.train.strategies import Strategy, sharded_state

T = TypeVar("T")

_CPU = torch.device("cpu")

STATE_DIR = "state"
"""Weights and optimizer states, written by all ranks."""


class Checkpointing:
    """The checkpoints of one run, as the trainer writes and reads them.

    Args:
        folder: The run folder.
        ranks: All ranks.
        strategy: It writes and reads trained weights and the optimizer's state.
        run_id: Identity of the run.
        recipe_fingerprint: What of the recipe decides the weights, as a hash.
        made_with: What this attempt trains with; a checkpoint made with what would give another result is refused.
        allowed: Kinds of changes that are accepted all the same, each up to the checkpoint of a step.
        keep: Newest checkpoints kept, beside the best.
        asynchronous: Whether a save that may fail is written beside the training.
        device: Where the state is.
    """

    def __init__(
        self,
        folder: RunFolder,
        ranks: Ranks,
        strategy: Strategy,
        *,
        run_id: str,
        recipe_fingerprint: str,
        made_with: Provenance,
        allowed: Mapping[str, int],
        keep: int,
        asynchronous: bool = False,
        device: torch.device = _CPU,
    ) -> None:
        self._folder, self._ranks = folder, ranks
        self._strategy = strategy
        self._run_id, self._keep = run_id, keep
        self._recipe_fingerprint, self._made_with, self._allowed = recipe_fingerprint, made_with, allowed
        self._verified: set[Path] = set()
        self._attempt = 0
        self._behind: BackgroundWrite | None = None
        self._copy = HostCopy(device) if asynchronous else None
        self._group = ranks.group_of_its_own() if asynchronous else None
        self.saved_step: int | None = None
        """Step of the newest checkpoint that is on the disk."""

    def resume(self, attempt: int) -> Progress:
        """Load the newest checkpoint that verifies and return where it stands; the beginning where there is none.

        Raises:
            InputError: It was made by another run, or with another recipe, other data, code or libraries.
        """
        chosen: Checkpoint | None = None
        refusal: tuple[str, str] | None = None
        self._attempt = attempt
        if self._ranks.is_first:
            self._become_the_writer()
            self._folder.checkpoints_dir.mkdir(parents=True, exist_ok=True)
            checkpoints.remove_staging(self._folder.checkpoints_dir)
            chosen = checkpoints.latest_checkpoint(self._folder.checkpoints_dir, self._report_set_aside)
            refusal = self._refusal(chosen) if chosen else None
        chosen, refusal = self._ranks.from_first((chosen, refusal))
        if refusal is not None:
            raise InputError(*refusal)
        if chosen is None:
            return Progress()
        state = _state_of(chosen.path)
        self._strategy.load(chosen.path / STATE_DIR)
        progress = Progress.from_json(state["progress"])
        self._verified.add(chosen.path)
        self.saved_step = chosen.step
        if self._ranks.is_first:
            self._folder.record(
                "resumed",
                attempt=attempt,
                checkpoint=chosen.path.name,
                step=chosen.step,
                samples=chosen.samples,
            )
            before = state["world_size"]
            others = "" if before == self._ranks.world_size else f", by {before} ranks"
            say(f"resumed from {chosen.path.name}: {chosen.samples} rows consumed{others}")
        return progress

    def save(self, progress: Progress) -> None:
        """Save the present state in the middle of a training; it may be written beside that, from a copy.

        Where the disk refuses, the last good checkpoint stays, an event is recorded, and the training goes on. What
        came of a save that is written beside is known when ``settle`` returns.

        Args:
            progress: Where the training stands.
        """
        self.settle()
        if self._copy is not None:
            self._begin(progress, self._copy)
            return
        began = time.monotonic()
        refusal = self._write(progress)
        if refusal is None:
            self.saved_step = progress.step
        else:
            self._report_passed_over(progress.step, refusal, time.monotonic() - began)

    def save_at_last(self, progress: Progress, *, try_for_s: float, on_refusal: Callable[[], None]) -> None:
        """Save the present state before the end; it is on the disk when this returns.

        Where the disk refuses, it is tried again from the start, as long as that may help and there is time. Rank 0
        decides for all: they have not seen the same error, nor the same clock.

        Args:
            progress: Where the training stands.
            try_for_s: Seconds in which the last try must be done.
            on_refusal: Called after each try that failed, on all ranks.

        Raises:
            DiskError: The disk refused to the end.
            FileSystemGoneError: The file system was away to the end.
        """
        self.settle()
        step, began, longest_s = progress.step, time.monotonic(), 0.0
        for tries in itertools.count(1):
            tried = time.monotonic()
            refusal = self._write(progress)
            if refusal is None:
                self.saved_step = step
                return
            now = time.monotonic()
            longest_s = max(longest_s, now - tried)
            mine = verdict(refusal, tries=tries, left_s=try_for_s - (now - began), longest_try_s=longest_s)
            agreed = self._ranks.from_first(mine)
            on_refusal()
            self._record_failure(step, refusal, now - tried, tries=tries, again_in_s=agreed.again_in_s)
            if agreed.again_in_s is None:
                problem = (
                    f"step {step} could not be saved in {self._folder.checkpoints_dir}: {refusal.problem}; "
                    f"{agreed.why}; {self._newest()} is the newest on the disk"
                )
                if refusal.number in GONE_ERRNOS:
                    raise FileSystemGoneError(problem, GONE_HINT)
                raise DiskError(problem, "mend it (space, quota, permissions), then: hpcgemma resume RUN")
            if self._ranks.is_first:
                kept = f"{self._newest()} is kept; {agreed.why}"
                say(f"WARNING: step {step} could not be saved: {refusal.problem}. {kept}")
                time.sleep(agreed.again_in_s)  # the others wait for its next folder

    def settle(self) -> None:
        """Wait for the save that is written beside the training; afterwards all ranks know what came of it."""
        if self._behind is None:
            return
        behind, self._behind = self._behind, None
        mine = behind.result()
        if next(filter(None, self._ranks.collect(mine or "")), None) is None:
            self.saved_step = behind.step

    def abandon(self, wait_s: float) -> None:
        """Give the save that is written beside the training some seconds to end, whatever the other ranks do."""
        if self._behind is not None:
            self._behind.wait(wait_s)

    def _begin(self, progress: Progress, copy: HostCopy) -> None:
        """Copy the state, and write the copy beside the training."""
        began = time.monotonic()
        staging, refusal = self._at_first(lambda: self._stage(progress.step))
        if refusal is not None:
            self._report_passed_over(progress.step, refusal, time.monotonic() - began)
        if staging is None:
            return
        tensors = copy.of(self._strategy.saved_state())
        position = Progress.from_json(progress.to_json())  # which goes on meanwhile
        stall_s = time.monotonic() - began
        self._behind = BackgroundWrite(
            progress.step, lambda: self._write_behind(staging, tensors, position, began, stall_s)
        )

    def _write_behind(
        self, staging: Path, tensors: dict[str, torch.Tensor], progress: Progress, began: float, stall_s: float
    ) -> str | None:
        """Write a copy, in a thread of its own on each rank; return why the disk refused, or None.

        That all ranks have written is what the group of these threads agrees on.
        """
        try:
            sharded_state.write(staging / STATE_DIR, tensors, self._group)
            if self._ranks.is_first:
                self._commit(staging, progress, began, stall_s)
        except OSError as error:
            refusal = Refusal.of(error)
            self._report_passed_over(progress.step, refusal, stall_s)
            if self._ranks.is_first:
                checkpoints.remove_staging(self._folder.checkpoints_dir)
            return refusal.problem
        return None

    def _report_passed_over(self, step: int, refusal: Refusal, stall_s: float) -> None:
        self._record_failure(step, refusal, stall_s)
        if self._ranks.is_first:
            kept = f"{self._newest()} is kept; training goes on"
            say(f"WARNING: step {step} could not be saved: {refusal.problem}. {kept}")

    def _record_failure(self, step: int, refusal: Refusal, stall_s: float, **facts: Any) -> None:
        if self._ranks.is_first:
            seconds = round(stall_s, 3)
            self._folder.record(
                "save_failed", step=step, problem=refusal.problem, errno=refusal.name, seconds=seconds, **facts
            )

    def _newest(self) -> str:
        return "no checkpoint" if self.saved_step is None else f"step-{self.saved_step}"

    def load_best(self, step: int) -> bool:
        """Load the weights of a step and return whether they were there and whole."""
        is_whole = True
        if self._ranks.is_first:
            found = checkpoints.checkpoint_at(self._folder.checkpoints_dir, step)
            problems = ["it is not there"] if found is None else checkpoints.verify(found)
            if found is not None and problems:
                self._report_set_aside(checkpoints.put_aside(found), "; ".join(problems))
            is_whole = not problems
        is_whole = self._ranks.from_first(is_whole)
        if is_whole:
            self._strategy.load_weights(self._folder.checkpoints_dir / f"step-{step}" / STATE_DIR)
        return is_whole

    def _write(self, progress: Progress) -> Refusal | None:
        """Write a checkpoint, all ranks together; return why the disk refused, or None."""
        began = time.monotonic()
        staging, refusal = self._at_first(lambda: self._stage(progress.step))
        if staging is not None:
            mine: Refusal | None = None
            try:
                sharded_state.write(staging / STATE_DIR, self._strategy.saved_state())
            except OSError as error:
                mine = Refusal.of(error)
            refusal = next(filter(None, self._ranks.collect(mine)), None)
            if refusal is None:
                _, refusal = self._at_first(lambda: self._commit(staging, progress, began))
        if refusal is not None and self._ranks.is_first:
            checkpoints.remove_staging(self._folder.checkpoints_dir)
        return refusal

    def _at_first(self, do: Callable[[], T]) -> tuple[T | None, Refusal | None]:
        """Do something on rank 0; return its result and why the disk refused, on all ranks."""
        done: T | None = None
        refusal: Refusal | None = None
        if self._ranks.is_first:
            try:
                done = do()
            except OSError as error:
                refusal = Refusal.of(error)
        return self._ranks.from_first((done, refusal))

    def _stage(self, step: int) -> Path:
        """Make the folder that all ranks write into; rank 0."""
        self._refuse_if_overtaken()
        self._folder.checkpoints_dir.mkdir(parents=True, exist_ok=True)
        staging = checkpoints.stage(self._folder.checkpoints_dir, step)
        files.make_private_dir(staging / STATE_DIR)
        return staging

    def _commit(self, staging: Path, progress: Progress, began: float, stall_s: float | None = None) -> None:
        """Turn what all ranks wrote into a checkpoint; rank 0.

        Args:
            staging: What was written.
            progress: Where the training stood.
            began: When the save began.
            stall_s: How long the training waited for it; None: to its end.
        """
        state = {
            "progress": progress.to_json(),
            "made_with": self._made_with.to_json(),
            "world_size": self._ranks.world_size,
        }
        (staging / STATE_NAME).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        self._refuse_if_overtaken()
        checkpoint = checkpoints.commit(
            staging,
            step=progress.step,
            samples=progress.samples,
            run_id=self._run_id,
            recipe_fingerprint=self._recipe_fingerprint,
            world_size=self._ranks.world_size,
        )
        self._verified.add(checkpoint.path)
        seconds = time.monotonic() - began
        self._folder.record(
            "saved",
            step=progress.step,
            samples=progress.samples,
            seconds=round(seconds, 3),
            stall_s=round(seconds if stall_s is None else stall_s, 3),
            bytes=checkpoint.total_bytes,
        )
        self._prune(progress)

    def _become_the_writer(self) -> None:
        """Note that this attempt reads the checkpoints now: what an earlier one saves from here on would not count."""
        with contextlib.suppress(OSError):  # without it, rank 0 of an earlier attempt would have to live on
            self._folder.lock_dir.mkdir(mode=files.PRIVATE_DIR_MODE, exist_ok=True)
            files.write_atomically(self._folder.writer_file, f"{self._attempt}\n")

    def _refuse_if_overtaken(self) -> None:
        """Write nothing where a later attempt has begun, as on a node that Slurm has lost and started anew elsewhere.

        Raises:
            OvertakenError: A later attempt has begun.
        """
        try:
            writer = int(self._folder.writer_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        if writer > self._attempt:
            raise OvertakenError(
                f"attempt {writer} goes on with this run; attempt {self._attempt} writes no checkpoint any more",
                f"nothing is lost: hpcgemma status {self._folder.path.name}",
            )

    def _prune(self, progress: Progress) -> None:
        """Delete old checkpoints; where the disk refuses, they stay, and the new one counts all the same."""
        protect = {step for _, step in progress.best}
        try:
            deleted = checkpoints.prune(
                self._folder.checkpoints_dir, keep=self._keep, protect=protect, verified=self._verified
            )
        except OSError as error:
            say(f"WARNING: old checkpoints could not be deleted: {Refusal.of(error).problem}")
            return
        self._verified -= {each.path for each in deleted}

    def _refusal(self, checkpoint: Checkpoint) -> tuple[str, str] | None:
        """Say what has changed since a checkpoint; return why it is refused and what to do, or None. Rank 0."""
        anew = f"start a new run (hpcgemma submit), or move {self._folder.checkpoints_dir} away to begin this one anew"
        if checkpoint.run_id != self._run_id:
            return f"{checkpoint.path} belongs to run {checkpoint.run_id!r}, this is {self._run_id!r}", anew
        before = provenance_of(checkpoint.path)
        changes = changes_since(before, self._made_with)
        for each in changes:
            say(f"changed since {checkpoint.path.name}: {each}")
        allowed = accepted(self._allowed, checkpoint.step)
        bad = refused(changes, allowed)
        if bad:
            problem, hint = refusal_of(bad, step=checkpoint.step, run=self._folder.path.name)
            return problem, anew if needs_a_new_run(bad) else hint
        is_known = before.recipe is not None or allowed & {"recipe", "data"}
        if not is_known and checkpoint.recipe_fingerprint != self._recipe_fingerprint:
            return f"{checkpoint.path} was trained with another recipe than run.yaml now holds", anew
        return None

    def _report_set_aside(self, checkpoint: Checkpoint, problem: str) -> None:
        self._folder.record("set_aside", checkpoint=checkpoint.path.name, problem=problem)
        say(f"WARNING: a damaged checkpoint was set aside as {checkpoint.path.name}: {problem}")


def _state_of(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((path / STATE_NAME).read_text(encoding="utf-8"))
    return state
