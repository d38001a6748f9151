"""The model that a recipe means: its shape, its weights, what of them is trained, and in which precision."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hpcgemma.errors import InputError
from hpcgemma.train.anatomy import is_tied, text_decoder_of
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.model import build_model
from tests.train.models import CPU, SHAPES, VISION_SHAPES, built, recipe_of, some_ids

# peft 0.21 asks transformers for a name that is to go in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA: dict[str, Any] = {"lora.rank": 4}
TEXT: dict[str, Any] = {"model.kind": "text", "model.config": {}}

Layout = list[tuple[str, torch.Size, torch.dtype, bool]]


def layout(model: nn.Module) -> Layout:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return [(name, each.shape, each.dtype, each.requires_grad) for name, each in tensors]


@pytest.fixture(scope="module")
def saved(prepared: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a shape's pretrained weights."""
    root = tmp_path_factory.mktemp("saved")

    def folder(shape: str) -> Path:
        if not (root / shape).exists():
            built(shape, prepared).model.save_pretrained(root / shape)
        return root / shape

    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.freeze": {"layers": 1}, "training.precision": "bf16", "training.neftune_alpha": 5.0},
        {**LORA, "training.precision": "bf16", "lora.modules_to_save": ["embed_tokens", "lm_head"]},
        {**LORA, "lora.dora": True},
    ],
)
@pytest.mark.parametrize("shape", ["gemma", "gemma2", "gemma3_text", "gemma4_text", "qwen2", "gemma3", "gemma4"])
def test_an_empty_model_differs_in_nothing_but_its_numbers(
    prepared: PreparedData, shape: str, changes: dict[str, Any]
) -> None:
    full, empty = built(shape, prepared, changes).model, built(shape, prepared, changes, empty=True).model
    assert layout(empty) == layout(full)
    assert {tensor.device.type for tensor in [*empty.parameters(), *empty.buffers()]} == {"meta"}
    assert is_tied(empty) == is_tied(full)
    assert type(empty) is type(full)


def test_an_empty_model_reads_no_weights(prepared: PreparedData, saved: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        shutil.copy(saved("gemma3") / name, tmp_path)
    empty = built("gemma3", prepared, {**TEXT, "model.path": str(tmp_path)}, empty=True).model
    full = built("gemma3", prepared, {**TEXT, "model.path": str(saved("gemma3"))}).model
    assert layout(empty) == layout(full)
    assert empty.generation_config.eos_token_id == [1, 5]


def test_a_base_model_is_told_what_ends_a_turn(
    prepared: PreparedData, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(saved("gemma2"), tmp_path / "base")
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    model = built("gemma2", prepared, {"model.path": str(folder), "model.config": {}}).model
    assert model.generation_config.eos_token_id == [7, 1, 5]


@pytest.mark.parametrize("shape", [*SHAPES, *VISION_SHAPES])
def test_pretrained_weights_are_loaded_whole(prepared: PreparedData, saved: Callable[[str], Path], shape: str) -> None:
    expected = built(shape, prepared).model
    result = built(shape, prepared, {"model.path": str(saved(shape)), "model.config": {}})
    assert result.notes[1:] == []
    assert layout(result.model) == layout(expected)
    stored = result.model.state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in expected.state_dict().items())


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
@pytest.mark.parametrize("shape", list(VISION_SHAPES))
def test_the_text_of_a_model_with_vision_is_loaded_whole(
    prepared: PreparedData, saved: Callable[[str], Path], tmp_path: Path, shape: str, prefix: str
) -> None:
    path = tmp_path / "copy"
    shutil.copytree(saved(shape), path)
    tensors = load_file(path / "model.safetensors")
    renamed = {
        name.replace("language_model.model.", prefix).replace("model.language_model.", prefix): tensor
        for name, tensor in tensors.items()
    }
    assert any(name.startswith(prefix) for name in renamed)
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    result = built(shape, prepared, {**TEXT, "model.path": str(path)})
    expected = text_decoder_of(built(shape, prepared).model).state_dict()
    assert type(result.model).__name__.endswith("ForCausalLM")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.model.model.state_dict().items())
    assert result.notes[1].startswith("model: the text model alone; ")

    del renamed[next(name for name in renamed if name.endswith("layers.1.mlp.up_proj.weight"))]
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 are missing or of another shape, such as .*layers\.1\.mlp\.up_proj"):
        built(shape, prepared, {**TEXT, "model.path": str(path)})


def test_weights_of_another_shape_or_cut_short_are_refused(
    prepared: PreparedData, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    shutil.copytree(saved("gemma2"), path)
    changes = {"model.path": str(path), "model.config": {}}
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(31)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 are missing or of another shape, such as .*model\.norm\.weight"):
        built("gemma2", prepared, changes)
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=f"the weights at '{path}' cannot be read"):
        built("gemma2", prepared, changes)
    (path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=f"the weights at '{path}' cannot be read"):
        built("gemma2", prepared, changes)


def test_a_head_of_its_own_where_the_config_says_tied_is_refused(
    prepared: PreparedData, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "copy"
    shutil.copytree(saved("gemma2"), path)
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="an output head apart from the input embeddings"):
        built("gemma2", prepared, {"model.path": str(path), "model.config": {}})


@pytest.mark.parametrize(
    ("changes", "trained", "frozen"),
    [
        ({"training.precision": "bf16", "model.freeze": {"embeddings": True}}, torch.float32, torch.bfloat16),
        (
            {"training.precision": "bf16", "training.trained_weights": "bf16", "model.freeze": {"layers": 1}},
            torch.bfloat16,
            torch.bfloat16,
        ),
        ({"training.precision": "fp32", "model.freeze": {"layers": 1}}, torch.float32, torch.float32),
        ({"training.precision": "bf16", **LORA}, torch.float32, torch.bfloat16),
        ({"training.precision": "bf16", "training.trained_weights": "bf16", **LORA}, torch.bfloat16, torch.bfloat16),
        ({"training.precision": "fp32", **LORA}, torch.float32, torch.float32),
    ],
)
def test_trained_and_frozen_weights_are_held_in_their_own_precision(
    prepared: PreparedData, changes: dict[str, Any], trained: torch.dtype, frozen: torch.dtype
) -> None:
    model = built("gemma2", prepared, changes).model
    assert {each.dtype for each in model.parameters() if each.requires_grad} == {trained}
    assert {each.dtype for each in model.parameters() if not each.requires_grad} == {frozen}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"training.precision": "fp16"}, "fp16 overflows"),
        (
            {"training.precision": "fp32", "training.trained_weights": "bf16"},
            "bf16 contradicts training.precision fp32",
        ),
        ({"training.liger_kernels": True}, "liger_kernels need a GPU, and this rank computes on cpu"),
        ({"model.freeze": {"head": True}, **LORA}, "model.freeze and lora are both set"),
    ],
)
def test_fields_that_contradict_each_other_or_the_machine_are_refused(
    prepared: PreparedData, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        built("gemma2", prepared, changes)


def test_weights_can_be_put_elsewhere_than_the_device_that_computes(prepared: PreparedData) -> None:
    recipe, device = recipe_of("gemma3", LORA), torch.device("cuda", 0)
    source = build_model(recipe, prepared, device, weights_on=CPU).model
    assert {tensor.device.type for tensor in [*source.parameters(), *source.buffers()]} == {"cpu"}
    assert layout(source) == layout(build_model(recipe, prepared, device, empty=True).model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_ligers_kernels_change_no_logits(prepared: PreparedData) -> None:
    pytest.importorskip("liger_kernel")
    device = torch.device("cuda", 0)
    for shape in ("gemma2", "gemma3_text", "qwen2"):
        plain = build_model(recipe_of(shape), prepared, device).model.eval()
        fused = build_model(recipe_of(shape, {"training.liger_kernels": True}), prepared, device)
        assert fused.notes[-1].startswith("kernels: Liger's norms")
        ids_BT = some_ids().to(device)
        torch.testing.assert_close(fused.model.eval()(ids_BT).logits, plain(ids_BT).logits, rtol=1e-4, atol=1e-4)
