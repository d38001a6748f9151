"""Adafactor: the updates of transformers', under every sharding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor as Reference

from hpcgemma.train import pieces
from hpcgemma.train.adafactor import Adafactor
from hpcgemma.train.pieces import Piece, Placement
from hpcgemma.train.strategies.zero_pieces import zero_placements
from tests.train import adafactor_ranks as ranks

SHAPES = ((7, 5), (1, 4), (4, 1), (6,), (1,), (), (30, 20))


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """What transformers' Adafactor ends with on one process."""
    model = ranks.build_model()
    optimizer = _reference(ranks.grouped(model))
    ranks.train(model, optimizer, range(len(ranks.LEARNING_RATES)))
    statistics = {}
    for parameter, name in ranks.names_of(model).items():
        state = optimizer.state[parameter]
        column = state["exp_avg_sq_col"] if parameter.ndim > 1 else state["exp_avg_sq"]
        statistics[name] = (state["step"], state.get("exp_avg_sq_row"), column)
    return {"weights": {name: each.detach() for name, each in model.named_parameters()}, "statistics": statistics}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ranks.run_ranks(tmp_path_factory.mktemp("two"), 2, "fsdp", *ranks.ZERO, ranks.BF16)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ranks.run_ranks(tmp_path_factory.mktemp("four"), 4, "fsdp", "hybrid")


@pytest.mark.parametrize("clip_threshold", [1.0, 0.3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_updates_are_those_of_transformers(clip_threshold: float, weight_decay: float) -> None:
    ours, theirs = _parameters(torch.float32), _parameters(torch.float32)
    options = {"clip_threshold": clip_threshold, "weight_decay": weight_decay}
    _step_both(_ours(ours, **options), ours, _reference(theirs, **options), theirs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-7)


def test_bf16_weights_are_updated_in_fp32_as_transformers_does() -> None:
    ours, theirs = _parameters(torch.bfloat16), _parameters(torch.bfloat16)
    _step_both(_ours(ours), ours, _reference(theirs), theirs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=2**-8, atol=0.0)
        assert (our != their).float().mean() < 0.01  # a sum in another order may round one to the neighbour


def test_a_kernel_is_factored_as_the_matrix_of_its_first_dimension() -> None:
    ours = [nn.Parameter(torch.randn(4, 3, 2, 2))]
    theirs = [nn.Parameter(ours[0].detach().clone().view(4, 12))]
    _step_both(_ours(ours), ours, _reference(theirs), theirs)
    torch.testing.assert_close(ours[0].view(4, 12), theirs[0], rtol=1e-6, atol=1e-7)


def test_a_parameter_without_a_gradient_is_skipped() -> None:
    parameters = _parameters(torch.float32)
    before = parameters[0].detach().clone()
    optimizer = _ours(parameters, weight_decay=0.5)
    parameters[1].grad = torch.ones_like(parameters[1])
    optimizer.step()
    assert torch.equal(parameters[0], before)
    assert list(optimizer.state_dict()["statistics"]) == ["1"]


@pytest.mark.parametrize("block_elements", [1, 12, 1000])
def test_any_range_is_cut_into_rectangles_that_cover_it_once(
    block_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "BLOCK_ELEMENTS", block_elements)
    matrix = torch.arange(35).view(7, 5)
    for start in range(36):
        for stop in range(start, 36):
            covered = torch.zeros(7, 5)
            piece = Piece("it", (7, 5), start, stop, offset=2)
            local_N = torch.cat([torch.tensor([-1, -1]), matrix.flatten()[start:stop]])
            for block in piece.blocks():
                assert torch.equal(block.of(local_N), matrix[block.rows, block.columns])
                covered[block.rows, block.columns] += 1
            assert torch.equal(covered.flatten().nonzero().flatten(), torch.arange(start, stop))
            assert covered.max() <= 1


def test_blocks_do_not_change_the_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = _parameters(torch.float32), _parameters(torch.float32)
    monkeypatch.setattr(pieces, "BLOCK_ELEMENTS", 40)
    _step_both(_ours(ours), ours, _reference(theirs), theirs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-6, atol=1e-7)


def test_what_is_saved_resumes_bit_by_bit(tmp_path: Path) -> None:
    straight, resumed = _parameters(torch.float32), _parameters(torch.float32)
    one, two = _ours(straight), _ours(resumed)
    for step in range(6):
        if step == 3:
            torch.save(two.state_dict(), tmp_path / "optimizer.pt")
            two = _ours(resumed)
            two.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
        for optimizer, parameters in ((one, straight), (two, resumed)):
            _draw_gradients(parameters, step)
            optimizer.step()
    for left, right in zip(straight, resumed, strict=True):
        assert torch.equal(left, right)


def test_loading_takes_a_copy() -> None:
    parameters = _parameters(torch.float32)
    optimizer, other = _ours(parameters), _ours(parameters)
    _draw_gradients(parameters, 0)
    optimizer.step()
    state = optimizer.state_dict()
    saved = copy.deepcopy(state)
    other.load_state_dict(state)
    other.step()
    assert torch.equal(state["statistics"]["0"]["row_O"], saved["statistics"]["0"]["row_O"])


def test_statistics_of_another_model_are_refused() -> None:
    parameters = _parameters(torch.float32)
    state: dict[str, Any] = {"statistics": {"elsewhere.weight": {}}}
    with pytest.raises(ValueError, match=r"of other parameters: elsewhere\.weight"):
        _ours(parameters).load_state_dict(state)


def test_a_tensor_that_nobody_described_is_refused() -> None:
    partition = nn.Parameter(torch.zeros(8))
    optimizer = Adafactor([partition], {}, lr=0.1)
    partition.grad = torch.zeros(8)
    with pytest.raises(ValueError, match=r"shape \(8,\) has neither a name nor a placement"):
        optimizer.step()


def test_a_piece_that_does_not_fit_is_refused() -> None:
    partition = torch.zeros(8)
    for piece in (Piece("it", (3, 4), 0, 9), Piece("it", (3, 4), 9, 13), Piece("it", (3, 4), 0, 6, offset=3)):
        with pytest.raises(ValueError, match="does not fit into a tensor of 8 elements"):
            _ours([]).place(partition, Placement([piece], None))


def test_an_optimizer_that_is_not_of_zero_is_refused() -> None:
    with pytest.raises(TypeError, match="SGD is no ZeRO optimizer"):
        list(zero_placements(torch.optim.SGD(_parameters(torch.float32)), {}))


@pytest.mark.parametrize("sharding", ["fsdp", *ranks.ZERO])
def test_two_ranks_learn_what_one_process_does(
    sharding: str, two_ranks: dict[str, Any], reference: dict[str, Any]
) -> None:
    _assert_learned(two_ranks[sharding]["uninterrupted"], reference)


@pytest.mark.parametrize("sharding", ["fsdp", "hybrid"])
def test_ranks_with_empty_shards_learn_what_one_process_does(
    sharding: str, four_ranks: dict[str, Any], reference: dict[str, Any]
) -> None:
    _assert_learned(four_ranks[sharding]["uninterrupted"], reference)


def test_fp32_partitions_of_bf16_weights_learn_what_one_process_does(
    two_ranks: dict[str, Any], reference: dict[str, Any]
) -> None:
    for name, weight in reference["weights"].items():
        learned = two_ranks[ranks.BF16]["uninterrupted"]["weights"][name].float()
        torch.testing.assert_close(learned, weight, rtol=0.0, atol=0.03)


@pytest.mark.parametrize("sharding", ["fsdp", *ranks.ZERO, ranks.BF16])
def test_a_sharded_training_resumes_bit_by_bit(sharding: str, two_ranks: dict[str, Any]) -> None:
    uninterrupted, resumed = two_ranks[sharding]["uninterrupted"], two_ranks[sharding]["resumed"]
    for name, weight in uninterrupted["weights"].items():
        assert torch.equal(resumed["weights"][name], weight), name


def _assert_learned(end: dict[str, Any], reference: dict[str, Any]) -> None:
    """Assert that weights and statistics are those of the reference."""
    assert end["weights"].keys() == reference["weights"].keys()
    for name, weight in reference["weights"].items():
        torch.testing.assert_close(end["weights"][name], weight, rtol=1e-5, atol=1e-6)
        step, row, column = reference["statistics"][name]
        ours = end["statistics"][name]
        assert ours["step"] == step
        torch.testing.assert_close(ours["column_I"], column, rtol=1e-4, atol=1e-9)
        if row is not None:
            torch.testing.assert_close(ours["row_O"], row, rtol=1e-4, atol=1e-9)


def _parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def _ours(parameters: list[nn.Parameter], **options: float) -> Adafactor:
    names: dict[Tensor, str] = {parameter: str(index) for index, parameter in enumerate(parameters)}
    return Adafactor([{"params": parameters}], names, lr=0.01, **options)


def _reference(parameters: Any, **options: float) -> Any:
    adafactor: Any = Reference
    return adafactor(parameters, lr=0.01, scale_parameter=False, relative_step=False, warmup_init=False, **options)


def _draw_gradients(parameters: list[nn.Parameter], step: int) -> None:
    """Give the parameters gradients that grow from step to step, so that updates are clipped."""
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * 2.0**step).to(parameter.dtype)


def _step_both(one: Any, ones: list[nn.Parameter], other: Any, others: list[nn.Parameter]) -> None:
    """Take six steps with both, the learning rate changing."""
    for step, rate in enumerate(ranks.LEARNING_RATES):
        _draw_gradients(ones, step)
        for left, right in zip(ones, others, strict=True):
            assert left.grad is not None
            right.grad = left.grad.clone().view(right.shape)
        for optimizer in (one, other):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
