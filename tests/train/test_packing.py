"""Packed rows learn what they would learn alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hpcgemma.recipes.types import TrainingSpec
from hpcgemma.train.data.batches import MicroBatch, collate, collate_packs
from hpcgemma.train.data.packing import Packs, best_fit, pack_parts, packing_counts, padding_share
from hpcgemma.train.data.token_rows import TokenRows
from hpcgemma.train.objective import Objective
from tests.train.launch import Run
from tests.train.models import SHAPES
from tests.train.packed import CAPACITY, VOCAB_SIZE, random_rows, write_prepared

MODELS: dict[str, dict[str, Any]] = {
    "gemma2": {**SHAPES["gemma2"], "sliding_window": 8},
    "gemma3_text": {**SHAPES["gemma3_text"], "sliding_window": 8},
    "qwen2": SHAPES["qwen2"],
}
KINDS = [
    ("gemma2", "eager"),
    ("gemma3_text", "eager"),
    ("gemma3_text", "sdpa"),
    ("qwen2", "eager"),
    ("qwen2", "sdpa"),
]
ROWS = TokenRows.of(random_rows([20, 30, 9, 25, 33]))
PACKS = [np.array([0, 1, 2]), np.array([3, 4])]


def objective_of(shape: str, attention: str) -> Objective:
    torch.manual_seed(0)
    settings = dict(MODELS[shape])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings, vocab_size=VOCAB_SIZE, initializer_range=0.2)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation=attention)
    return Objective(model.eval(), TrainingSpec(precision="fp32"), autocast=False)


def naive_best_fit(lengths: list[int], capacity: int) -> int:
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - length)
    return len(rooms)


def first_fit(lengths: list[int], capacity: int) -> int:
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = next((place for place, room in enumerate(rooms) if room >= length), None)
        if place is None:
            rooms.append(capacity - length)
        else:
            rooms[place] -= length
    return len(rooms)


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_in_one_pack_and_no_pack_overflows(seed: int) -> None:
    lengths_N = np.random.default_rng(seed).integers(1, 101, 700)
    packs = best_fit(lengths_N, 100)
    assert sorted(packs.rows_N.tolist()) == list(range(700))
    assert packs.sums(lengths_N).max() <= 100
    assert all((np.diff(packs.rows_of(pack)) > 0).all() and len(packs.rows_of(pack)) for pack in range(len(packs)))
    assert len(packs) == naive_best_fit(lengths_N.tolist(), 100) <= first_fit(lengths_N.tolist(), 100)
    assert np.array_equal(packs.rows_N, best_fit(lengths_N, 100).rows_N)


def test_rows_go_where_the_least_room_is_left() -> None:
    packs = best_fit(np.array([3, 6, 5, 2, 4]), 10)
    assert [packs.rows_of(pack).tolist() for pack in range(len(packs))] == [[1, 4], [0, 2, 3]]


def test_a_row_longer_than_a_pack_is_never_cut() -> None:
    with pytest.raises(ValueError, match="a row of 11 tokens does not fit into a pack of 10"):
        best_fit(np.array([3, 11]), 10)


def test_packs_never_mix_the_parts_of_a_mixture() -> None:
    lengths_N = np.random.default_rng(0).integers(1, 30, 100)
    packs, ranges = pack_parts(lengths_N, [(0, 40), (40, 60)], 64)
    assert sum(count for _, count in ranges) == len(packs)
    for (first, count), expected in zip(ranges, (range(40), range(40, 100)), strict=True):
        rows = [row for pack in range(first, first + count) for row in packs.rows_of(pack).tolist()]
        assert sorted(rows) == list(expected)


def test_packs_are_read_as_they_were_written(tmp_path: Path) -> None:
    packs = best_fit(np.array([3, 6, 5, 2, 4]), 10)
    packs.save(tmp_path, "train")
    found = Packs.open(tmp_path, "train")
    assert found is not None
    assert np.array_equal(found.rows_N, packs.rows_N)
    assert np.array_equal(found.offsets_S1, packs.offsets_S1)
    assert Packs.open(tmp_path, "eval") is None


def test_what_packing_saves_is_counted() -> None:
    lengths_N = np.array([3, 6, 5, 2, 4])
    counts = packing_counts(best_fit(lengths_N, 10), lengths_N, 10)
    assert (counts.packs, counts.rows, counts.tokens, counts.density) == (2, 5, 20, 1.0)
    assert padding_share(lengths_N, [np.array([0, 1]), np.array([3, 4])]) == pytest.approx(1 - 15 / 20)


def test_positions_restart_with_each_row_and_its_first_token_is_not_learned() -> None:
    rows = TokenRows(
        ids_L=np.arange(10, 16, dtype=np.int32),
        is_target_L=np.ones(6, np.bool_),
        starts_N=np.array([0, 2]),
        lengths_N=np.array([2, 4]),
        targets_N=np.array([2, 4]),
    )
    batch = collate_packs(rows, [np.array([0, 1])], 7, 0)
    assert batch.ids_BT.tolist() == [[10, 11, 12, 13, 14, 15, 0, 0]]
    assert batch.position_ids_BT is not None
    assert batch.position_ids_BT.tolist() == [[0, 1, 0, 1, 2, 3, 0, 1]]
    assert batch.positions_N.tolist() == [0, 2, 3, 4]
    assert batch.labels_N.tolist() == [11, 13, 14, 15]


@pytest.mark.filterwarnings("ignore")  # torch would rather compile flex attention
@pytest.mark.parametrize(("shape", "attention"), [*KINDS, ("gemma3_text", "flex_attention")])
def test_a_packed_loss_is_that_of_the_rows_alone(shape: str, attention: str) -> None:
    objective = objective_of(shape, attention)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # compiled it takes a minute
        packed = float(objective(*collate_packs(ROWS, PACKS, CAPACITY, 0)))
        alone = sum(float(objective(*collate(ROWS, np.array([row]), 0))) for row in range(len(ROWS)))
    assert packed == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize(("shape", "attention"), KINDS)
def test_packed_gradients_are_those_of_the_rows_alone(shape: str, attention: str) -> None:
    objective = objective_of(shape, attention)

    def gradients(*batches: MicroBatch) -> dict[str, torch.Tensor]:
        objective.zero_grad()
        for batch in batches:
            objective(*batch).backward()
        return {name: each.grad.clone() for name, each in objective.named_parameters() if each.grad is not None}

    packed = gradients(collate_packs(ROWS, PACKS, CAPACITY, 0))
    alone = gradients(*(collate(ROWS, np.array([row]), 0) for row in range(len(ROWS))))
    assert packed.keys() == alone.keys()
    for name, expected in alone.items():
        assert float((packed[name] - expected).norm() / expected.norm()) < 1e-5, name


@pytest.mark.parametrize(("shape", "attention"), KINDS)
def test_a_token_of_one_row_changes_no_other_row(shape: str, attention: str) -> None:
    decoder: Any = objective_of(shape, attention).model.base_model
    batch = collate_packs(ROWS, PACKS, CAPACITY, 0)

    def hidden(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = decoder(
                input_ids=ids, position_ids=batch.position_ids_BT, use_cache=False
            ).last_hidden_state
        return found

    changed_ids = batch.ids_BT.clone()
    changed_ids[0, 22] = 7  # the third token of the second row, which ends at 50
    before, after = hidden(batch.ids_BT), hidden(changed_ids)
    differs = (before != after).any(-1)
    assert differs[0, 22]
    differs[0, 22:50] = False
    assert not differs.any()


def test_packs_are_one_line_under_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    # transformers looks for packed rows in a batch of one alone there, and with sdpa too the loss is the same.
    objective = objective_of("qwen2", "sdpa")
    decoder: Any = objective.model.base_model
    shapes: list[tuple[int, ...]] = []
    decoder.embed_tokens.register_forward_hook(lambda module, given, result: shapes.append(tuple(result.shape[:2])))
    batch = collate_packs(ROWS, PACKS, CAPACITY, 0)
    with torch.no_grad():
        two_lines = float(objective(*batch))
        monkeypatch.setattr(Objective, "_takes_one_line", lambda self: True)
        one_line = float(objective(*batch))
    assert shapes == [(2, CAPACITY), (1, 2 * CAPACITY)]
    assert one_line == pytest.approx(two_lines, rel=1e-6)


CHANGES: dict[str, Any] = {
    "data.packing": True,
    "data.max_length": CAPACITY,
    "model.config.attention_dropout": 0.0,
    "training.global_batch": 4,
    "training.micro_batch": 1,
    "training.epochs": 1.0,
    "training.max_steps": 5,
    "checkpoint.every_steps": 2,
    "checkpoint.keep": 5,
    "evaluation.every_steps": 5,
    "training.log_every_steps": 1,
}


def packed_run(path: Path, changes: dict[str, Any] | None = None) -> Run:
    run = Run(path, {**CHANGES, **(changes or {})})
    write_prepared(run.folder.prepared_dir)
    return run


def test_packed_training_does_not_depend_on_ranks_and_resumes_exactly(tmp_path: Path) -> None:
    one, two = (packed_run(tmp_path / name) for name in ("one", "two"))
    for run, outcome in ((one, one.train_here()), (two, two.train(2))):
        assert outcome["outcome"] == "finished", (outcome, run.log())
    for step, (loss, norm) in one.losses().items():
        assert two.losses()[step] == pytest.approx((loss, norm), rel=1e-5)
    assert len(one.losses()) == 5
    final = two.final_weights()
    losses = two.losses()
    # As if the attempt had ended after step 2.
    resumed = two.copy(tmp_path / "resumed")
    assert "step-2" in resumed.checkpoints()
    for path in sorted(resumed.folder.checkpoints_dir.iterdir()):
        if path.name.startswith("step-") and int(path.name.removeprefix("step-")) > 2:
            for file in sorted(path.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            path.rmdir()
    resumed.train(2)
    assert resumed.first_step() == 3
    assert resumed.final_weights() == final
    assert resumed.losses() == losses


@pytest.mark.parametrize(
    "strategy",
    [{"name": "fsdp"}, {"name": "deepspeed", "zero_stage": 2}, {"name": "deepspeed", "zero_stage": 3}],
    ids=["fsdp", "zero2", "zero3"],
)
def test_packs_train_alike_under_every_strategy(tmp_path: Path, strategy: dict[str, Any]) -> None:
    alone, spread = packed_run(tmp_path / "alone"), packed_run(tmp_path / "spread", {"strategy": strategy})
    assert alone.train_here()["outcome"] == "finished"
    outcome = spread.train(2)
    assert outcome["outcome"] == "finished", (outcome, spread.log())
    for step, (loss, norm) in alone.losses().items():
        assert spread.losses()[step] == pytest.approx((loss, norm), rel=1e-5)


def test_attention_that_lets_packed_rows_see_each_other_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    outcome = packed_run(tmp_path / "run").train_here()
    assert outcome["outcome"] == "failed"
    assert "attention lets packed rows see each other" in str(outcome)
    assert "--set data.packing=false" in str(outcome)
