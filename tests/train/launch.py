"""Runs of the trainer alone, as the supervisor would start it: a run folder, and real processes over gloo."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from hpcgemma import files
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.prepare import prepare
from hpcgemma.train.signals import StopRequest
from tests.claims import rendezvous_port
from tests.train.forking import ForkedRank, Forker

DEADLINE_S = 300.0

TINY: dict[str, Any] = {
    "name": "tiny",
    "description": "As small as a model can be",
    "model": {
        "config": {
            "model_type": "gemma2",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "max_position_embeddings": 256,
            "attention_dropout": 0.1,
        }
    },
    "tokenizer": {"train_vocab_size": 400},
    "data": {
        "generator": {"train_rows": 41, "eval_rows": 7},  # 41 rows: an epoch ends inside a step
        "format": "svg_caption",
        "max_length": 256,
    },
    "optimizer": {"learning_rate": 0.002, "weight_decay": 0.01},
    "schedule": {"name": "cosine", "warmup": 3.0},
    "training": {
        "epochs": 12.0,
        "global_batch": 8,
        "micro_batch": 2,
        "eval_micro_batch": 2,
        "precision": "fp32",
    },
    "evaluation": {"every_steps": 15},
    "checkpoint": {"every_steps": 10, "keep": 2},
    "strategy": {"name": "ddp"},
    "tensorboard": False,
}
"""A recipe of 61 steps of about 50 ms, with dropout."""


def recipe_with(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tiny recipe with some fields changed; a field is named by its dotted path."""
    recipe = copy.deepcopy(TINY)
    for path, value in changes.items():
        *sections, field = path.split(".")
        place = recipe
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    return recipe


def content_with(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run.yaml; the trainer may be edited while tests run, which elsewhere a copy of it guards against."""
    return {"run_id": "the-run", "recipe": recipe_with(changes), "allowed_changes": {"code": 1_000_000}}


class Run:
    """A run folder and the ranks that work in it."""

    forker: Forker | None = None
    """What ranks are forked from; made when it is first needed, ended with the test session. A run may have its own."""
    ranks_per_node: int | None = None
    """None: all ranks are on one node."""

    def __init__(self, path: Path, changes: Mapping[str, Any] | None = None) -> None:
        self.folder = RunFolder(path)
        self.attempt = self.folder.last_attempt()
        self.ranks: list[subprocess.Popen[bytes] | ForkedRank] = []
        if not path.exists():
            path.mkdir(parents=True)
            content = content_with(changes or {})
            self.folder.run_file.write_text(yaml.safe_dump(content), encoding="utf-8")

    def copy(self, path: Path) -> Run:
        """Return a copy, such as one to be damaged."""
        shutil.copytree(self.folder.path, path)
        return Run(path)

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change the recipe in run.yaml."""
        content = content_with(changes)
        self.folder.run_file.write_text(yaml.safe_dump(content), encoding="utf-8")

    def prepare(self) -> None:
        """Tokenize, in this process, unless that is done."""
        if not self.folder.prepared_dir.exists():
            prepare(self.folder)

    def fork(self, world_size: int) -> None:
        """Start the ranks of the next attempt without the seconds that their imports would take."""
        if self.forker is None:
            Run.forker = Forker()
        forker = self.forker
        assert forker is not None
        for rank, place in enumerate(self._places(world_size)):
            self.ranks.append(forker.start(self.folder.path, place, self.folder.rank_log(self.attempt, rank)))

    def start(self, world_size: int, **options: Any) -> None:
        """Start the ranks of the next attempt as the supervisor does."""
        for rank, place in enumerate(self._places(world_size)):
            with self.folder.rank_log(self.attempt, rank).open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-u", "-m", "hpcgemma.train", str(self.folder.path)],
                    env=place,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    **options,
                )
            self.ranks.append(process)

    def _places(self, world_size: int) -> list[dict[str, str]]:
        """Begin an attempt and return the environment of each of its ranks."""
        self.prepare()
        self.attempt += 1
        self.folder.attempt_dir(self.attempt).mkdir(parents=True)
        peers = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(rendezvous_port()), "WORLD_SIZE": str(world_size)}
        return [
            self._environment()
            | peers
            | {"RANK": str(rank), "LOCAL_RANK": str(rank % self.ranks_per_node if self.ranks_per_node else rank)}
            for rank in range(world_size)
        ]

    def wait(self) -> list[int]:
        """Wait for the ranks' end and return their exit codes, negative for a signal."""
        deadline = time.monotonic() + DEADLINE_S
        try:
            return [rank.wait(timeout=max(0.1, deadline - time.monotonic())) for rank in self.ranks]
        finally:
            for rank in self.ranks:
                if rank.poll() is None:
                    rank.kill()
                    rank.wait()
            self.ranks = []

    def train(self, world_size: int) -> dict[str, Any]:
        """Start the ranks, wait for their end, and return the outcome."""
        self.fork(world_size)
        self.wait()
        return self.outcome()

    def is_running(self) -> bool:
        """Whether all ranks live."""
        return all(rank.poll() is None for rank in self.ranks)

    def train_here(self, stop: StopRequest | None = None) -> dict[str, Any]:
        """Train as the only rank, in this process, and return the outcome."""
        from hpcgemma.train.rank import run_rank

        self.prepare()
        self.attempt += 1
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment().items():
                patch.setenv(name, value)
            code = run_rank(self.folder, stop or StopRequest())
        outcome = self.outcome()
        assert (code == 0) == (outcome["outcome"] != "failed")
        return outcome

    def wait_for_step(self, step: int) -> None:
        """Wait until a step is logged in this attempt."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            lines = files.read_json_lines(self.folder.metrics_file)
            if any(line["step"] >= step and line["attempt"] == self.attempt for line in lines):
                return
            assert all(rank.poll() is None for rank in self.ranks), self.log()
            time.sleep(0.01)
        raise AssertionError(f"step {step} was not reached: {self.log()}")

    def send(self, number: signal.Signals, *ranks: int) -> None:
        """Send a signal to some ranks."""
        for rank in ranks:
            self.ranks[rank].send_signal(number)

    def outcome(self) -> dict[str, Any]:
        """Return what the trainer wrote of this attempt's end."""
        path = self.folder.outcome_file(self.attempt)
        assert path.exists(), self.log()
        outcome: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return outcome

    def losses(self) -> dict[int, tuple[float, float]]:
        """Return loss and gradient norm of each step; the last line of a step counts."""
        lines = files.read_json_lines(self.folder.metrics_file)
        return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if "loss" in line}

    def evaluations(self) -> dict[int, float]:
        """Return the held-out loss of each evaluation."""
        lines = files.read_json_lines(self.folder.metrics_file)
        return {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}

    def first_step(self) -> int:
        """Return the first step that this attempt logged."""
        lines = files.read_json_lines(self.folder.metrics_file)
        step: int = min(line["step"] for line in lines if line["attempt"] == self.attempt and "loss" in line)
        return step

    def final_weights(self) -> bytes:
        """Return the bytes of the finished model."""
        return (self.folder.final_dir / "model.safetensors").read_bytes()

    def saved(self, step: int) -> dict[str, Any]:
        """Return the trained weights of a checkpoint of DDP, whose ranks wrote some of the tensors each."""
        state = self.folder.checkpoints_dir / f"step-{step}" / "state"
        tensors = {name: each for path in state.iterdir() for name, each in load_file(path).items()}
        return {name.removeprefix("weights/"): each for name, each in tensors.items() if name.startswith("weights/")}

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of one name."""
        return [event for event in self.folder.events() if event["event"] == name]

    def checkpoints(self) -> list[str]:
        """Return the names in the checkpoint folder."""
        return sorted(path.name for path in self.folder.checkpoints_dir.iterdir())

    def log(self) -> str:
        """Return all that the ranks of this attempt said."""
        logs = sorted(self.folder.attempt_dir(self.attempt).glob("rank-*.log"))
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')}" for log in logs)

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "HPCGEMMA_ATTEMPT": str(self.attempt),
            "HPCGEMMA_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
        }


def assert_same(run: Run, reference: Run) -> None:
    """Assert that a run repeats another bit by bit: losses, held-out losses, final weights."""
    assert run.losses() == reference.losses()
    assert run.evaluations() == reference.evaluations()
    assert run.final_weights() == reference.final_weights()
