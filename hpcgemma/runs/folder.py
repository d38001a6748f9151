"""The run folder: the contract by which launcher, supervisor and trainer know each other."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpcgemma import files, snapshot

EventName = Literal[
    "submitted",  # a job was handed to the scheduler: job_id, by, links, lead_s
    "began",  # an attempt has its nodes: attempt, job_id, age_s of the supervisor
    "checked",  # the nodes' health was looked at: attempt, seconds in all, of the slowest node, sick, unknown
    "started",  # an attempt's ranks were started: attempt, job_id, nodes, ranks, code
    "resumed",  # the trainer loaded a checkpoint: attempt, step, samples
    "training",  # an attempt's first step begins: attempt, step, parts of the start in seconds
    "straggler",  # a rank is slower than the others: attempt, rank, sentence
    "warned",  # a warning arrived: attempt, signal, cause
    "saved",  # a checkpoint was committed: step, samples, seconds, stall_s of the training, bytes
    "save_failed",  # a checkpoint could not be written: step, problem, errno, seconds; tries, again_in_s of a last one
    "refused",  # a job found another one working on the run, and left it alone: job_id, sentence
    "set_aside",  # a broken checkpoint was renamed: checkpoint, problem
    "ended",  # an attempt ended: attempt, ending, sentence, hint, step, rank, its node
    "sick_node",  # a node is to blame for that: attempt, node, kind, sentence, is_struck, is_left
    "relaunched",  # the ranks are started again in the same allocation: attempt
    "continued",  # the run goes on in another job, or in this one requeued: by, job_id, lead_s, without (nodes)
    "linked",  # a job was queued ahead, which waits for those before it: job_id, link, lead_s
    "chain_ended",  # the last link of a chain ended at its time limit, and the run is not finished: links, job_id
    "changed",  # the launcher resumes it otherwise: settings, walltime, allowed
    "hastened",  # the launcher ended the wait of a requeued job: job_id
    "cancelled",  # the user asked for the end: job_id
    "drilled",  # `hpcgemma drill` did something to the run on purpose: act, attempt, command, refused
    "finished",  # final/ is complete: step
    "failed",  # the run cannot go on by itself: sentence, hint
]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Every path of one run. It computes paths and appends events; it decides nothing.

    Args:
        path: The folder itself, absolute.
    """

    path: Path

    @property
    def run_file(self) -> Path:
        """The resolved recipe, profile and plan: the answer to "what exactly ran?"."""
        return self.path / "run.yaml"

    @property
    def script_file(self) -> Path:
        """The job script as it was submitted."""
        return self.path / "job.sbatch"

    @property
    def code_dir(self) -> Path:
        """What the run's jobs import: a copy of the hpcgemma that submitted it."""
        return self.path / "code"

    @property
    def package_dir(self) -> Path:
        return self.code_dir / snapshot.NAME

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics_file(self) -> Path:
        """One line per logged step; after a step back in time, the later line of a step counts."""
        return self.path / "metrics.jsonl"

    @property
    def evaluation_file(self) -> Path:
        """Scores of generated answers, untrained and trained, as JSON."""
        return self.path / "evaluation.json"

    @property
    def monitors_file(self) -> Path:
        """One line per measurement of attention and softcaps, with what each layer showed."""
        return self.path / "monitors.jsonl"

    @property
    def heartbeat_dir(self) -> Path:
        return self.path / "heartbeat"

    @property
    def attempts_dir(self) -> Path:
        return self.path / "attempts"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def lock_dir(self) -> Path:
        """Who works on the run, and who did: see runs/lock.py."""
        return self.path / "lock"

    @property
    def writer_file(self) -> Path:
        """Number of the attempt that has read the checkpoints last; an earlier one writes none any more."""
        return self.lock_dir / "writer"

    @property
    def prepared_dir(self) -> Path:
        """Tokenized data, the tokenizer, and what was generated: made once, before any rank starts."""
        return self.path / "prepared"

    @property
    def final_dir(self) -> Path:
        """Model and tokenizer, loadable with from_pretrained; it exists only when it is complete."""
        return self.path / "final"

    @property
    def drill_file(self) -> Path:
        """What `hpcgemma drill` saw of this run, as JSON."""
        return self.path / "drill.json"

    @property
    def drill_text_file(self) -> Path:
        """The same as it was printed."""
        return self.path / "drill.txt"

    @property
    def report_file(self) -> Path:
        """What `hpcgemma report` wrote of the run last."""
        return self.path / "report.html"

    @property
    def tensorboard_dir(self) -> Path:
        return self.path / "tensorboard"

    @property
    def submitit_dir(self) -> Path:
        return self.path / "submitit"

    def attempt_dir(self, attempt: int) -> Path:
        return self.attempts_dir / str(attempt)

    def last_attempt(self) -> int:
        """Return the number of the newest attempt, whether it got as far as its ranks or not; 0 before the first."""
        return max((int(path.name) for path in self.attempts_dir.glob("*") if path.name.isdigit()), default=0)

    def rank_log(self, attempt: int, rank: int) -> Path:
        return self.attempt_dir(attempt) / f"rank-{rank}.log"

    def supervisor_log(self, attempt: int) -> Path:
        return self.attempt_dir(attempt) / "supervisor.log"

    def prepare_log(self, attempt: int) -> Path:
        """What the process that prepares the data wrote."""
        return self.attempt_dir(attempt) / "prepare.log"

    def srun_log(self, attempt: int) -> Path:
        """What srun itself wrote; absent where there is no Slurm."""
        return self.attempt_dir(attempt) / "srun.log"

    def health_log(self, attempt: int) -> Path:
        """What the nodes said of their health, a JSON object a line."""
        return self.attempt_dir(attempt) / "health.log"

    def outcome_file(self, attempt: int) -> Path:
        """What the trainer says of its own end, as JSON; absent when it was killed."""
        return self.attempt_dir(attempt) / "outcome.json"

    def heartbeat_file(self, rank: int) -> Path:
        return self.heartbeat_dir / str(rank)

    @property
    def prepare_heartbeat_file(self) -> Path:
        """The sign of life of the process that prepares the data."""
        return self.heartbeat_dir / "prepare"

    def record(self, event: EventName, **facts: Any) -> None:
        """Append one event with the present time (seconds since 1970, UTC).

        A full or read-only disk costs the event, which is printed instead, but never the run.
        """
        line = {"time": time.time(), "event": event, **facts}
        try:
            files.append_json_line(self.events_file, line)
        except OSError as error:
            print(f"hpcgemma: could not record {line}: {error}", file=sys.stderr, flush=True)

    def events(self) -> list[dict[str, Any]]:
        """Return all events, oldest first."""
        return list(files.read_json_lines(self.events_file))
