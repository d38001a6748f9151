"""Weights in 4 bits: which, how exactly, and that adapters learn beside them. On the CPU, by bitsandbytes itself."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hpcgemma.errors import InputError
from hpcgemma.train.adapters import describe_parameters
from hpcgemma.train.anatomy import head_of, text_layers
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.quantization import import_bitsandbytes, quantized_layers
from tests.train.models import built, some_ids

pytest.importorskip("bitsandbytes")

# peft 0.21 asks transformers for a name that is to go in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

QLORA: dict[str, Any] = {"model.quantization": {}, "lora.rank": 4}
WEIGHTS = 2 * (3 * 32 * 64 + 2 * 32 * 32 + 2 * 32 * 16)


def loss_of(model: Any) -> Any:
    return model(input_ids=some_ids(), labels=some_ids(), use_cache=False).loss


@pytest.mark.parametrize(
    "changes",
    [{}, {"model.quantization": {"type": "fp4", "double_quantization": False}}, {"lora.dora": True}],
)
@pytest.mark.parametrize("shape", ["gemma2", "gemma3", "qwen2"])
def test_adapters_learn_beside_quantized_weights(prepared: PreparedData, shape: str, changes: dict[str, Any]) -> None:
    model = built(shape, prepared, {**QLORA, **changes}).model
    whole = built(shape, prepared, {"lora.rank": 4}).model
    loss = loss_of(model)
    assert loss.item() == pytest.approx(loss_of(whole).item(), rel=1e-2)
    assert loss.item() != loss_of(whole).item()
    loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(("lora_" in name) and parameter.grad is not None for name, parameter in trained.items())


def test_embeddings_are_trained_whole_and_tied_beside_quantized_weights(prepared: PreparedData) -> None:
    changes = {**QLORA, "lora.modules_to_save": ["embed_tokens", "lm_head"], "training.precision": "bf16"}
    model = built("gemma2", prepared, changes).model
    with torch.autocast("cpu", torch.bfloat16):
        loss_of(model).backward()
    whole = [each for name, each in model.named_parameters() if "modules_to_save" in name]
    assert [(each.dtype, each.requires_grad) for each in whole] == [(torch.float32, True)]
    assert whole[0] is head_of(model).weight
    assert whole[0].grad is not None


def test_an_evaluation_changes_neither_the_loss_nor_the_gradient(prepared: PreparedData) -> None:
    model = built("gemma2", prepared, QLORA).model

    def gradient() -> list[torch.Tensor]:
        model.train()
        model.zero_grad()
        loss_of(model).backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    before, loss = gradient(), loss_of(model)
    model.eval()
    with torch.no_grad():
        assert torch.equal(loss_of(model), loss)
    after = gradient()
    assert len(before) == len(after) == 28
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("storage", [None, torch.bfloat16])
def test_pretrained_weights_are_quantized_as_random_ones_are(
    prepared: PreparedData, tmp_path: Path, precision: str, storage: torch.dtype | None
) -> None:
    as_drawn = {"training.precision": precision, "training.trained_weights": precision}
    built("gemma3", prepared, as_drawn).model.save_pretrained(tmp_path)
    changes = {**QLORA, "training.precision": precision}
    random = built("gemma3", prepared, changes, quant_storage=storage).model
    pretrained = built(
        "gemma3", prepared, {**changes, "model.path": str(tmp_path), "model.config": {}}, quant_storage=storage
    ).model
    assert random.state_dict().keys() == pretrained.state_dict().keys()
    for name, tensor in random.state_dict().items():
        bits, others = (each.reshape(-1).view(torch.uint8) for each in (tensor, pretrained.state_dict()[name]))
        assert torch.equal(bits, others), name
    for layer in quantized_layers(random):
        assert layer.weight.dtype == layer.quant_storage == (storage or torch.uint8)


def test_only_layers_of_the_text_decoder_are_quantized_and_they_count_what_they_pack(prepared: PreparedData) -> None:
    result = built("gemma3", prepared, {**QLORA, "training.precision": "bf16"})
    inside = {id(module) for layer in text_layers(result.model) for module in layer.modules()}
    assert all(id(layer) in inside for layer in quantized_layers(result.model))
    bare = built("gemma3", prepared).model
    total = sum(parameter.numel() for parameter in bare.parameters())
    assert result.notes[-1] == (
        f"quantization: {WEIGHTS:,} weights in nf4 (4 bits, its constants quantized too), {total - WEIGHTS:,} whole; "
        "products in bfloat16"
    )
    assert f"all params: {total + 4096:,} " in describe_parameters(result.model)
    whole = {p.dtype for n, p in result.model.named_parameters() if "lora_" not in n and p.dtype != torch.uint8}
    assert whole == {torch.bfloat16}
    assert {p.dtype for p in result.model.parameters() if p.requires_grad} == {torch.float32}


def test_without_bitsandbytes_the_package_to_install_is_named(
    prepared: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcgemma.train.quantization.import_bitsandbytes", lambda: None)
    with pytest.raises(InputError, match="needs the package bitsandbytes, which is not installed") as error:
        built("gemma2", prepared, QLORA)
    assert "pip install 'hpcgemma[quantization]'" in error.value.hint


def test_quantized_weights_without_adapters_are_refused(prepared: PreparedData) -> None:
    with pytest.raises(InputError, match=r"model\.quantization freezes all weights, and lora is null"):
        built("gemma2", prepared, {"model.quantization": {}})


def test_weights_that_are_quantized_already_are_refused(prepared: PreparedData, tmp_path: Path) -> None:
    model = built("gemma2", prepared).model
    model.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    model.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="are quantized already"):
        built("gemma2", prepared, {**QLORA, "model.path": str(tmp_path), "model.config": {}})


def test_bitsandbytes_is_imported_without_the_package_that_fetches_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = ModuleType("kernels")
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")

    def imported(name: str) -> ModuleType:
        assert sys.modules["kernels"] is None
        assert not log.isEnabledFor(logging.WARNING)
        return ModuleType(name)

    monkeypatch.setattr("importlib.import_module", imported)
    module = import_bitsandbytes()
    assert module is not None
    assert module.__name__ == "bitsandbytes"
    assert sys.modules["kernels"] is kernels
    assert log.isEnabledFor(logging.WARNING)
