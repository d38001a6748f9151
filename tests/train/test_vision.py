"""Gemma 3 is trained on images: the same tokens, pixels and losses as transformers has, under every strategy."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file
from transformers import AutoProcessor

from hpcgemma.recipes.types import DataSpec, Recipe
from hpcgemma.rows.images import decode
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.data.batches import MicroBatch, collate, collate_packs
from hpcgemma.train.data.packing import best_fit
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.turn_format import turn_format
from hpcgemma.train.failures import DataError
from hpcgemma.train.model import build_model
from hpcgemma.train.objective import Objective
from hpcgemma.train.prepare import prepare
from tests.train.contents import conversation_of
from tests.train.launch import Run, recipe_with
from tests.train.models import CPU
from tests.train.pictures import MODEL, SEES, TOKENS, caption_rows, draw, mixed_rows, write
from tests.train.test_strategies import STRATEGIES, assert_equal_up_to_rounding, final_of, slow

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def sees(data: str, **changes: Any) -> dict[str, Any]:
    return {**SEES, "data.train": data, **changes}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A prepared run of rows with no, one and two images."""
    folder = tmp_path_factory.mktemp("mixed")
    run = Run(folder / "run", sees(write(folder / "rows.jsonl", mixed_rows(folder, 48)), **{"data.eval_share": 0.2}))
    run.prepare()
    return run


@pytest.fixture(scope="module")
def data(mixed: Run) -> PreparedData:
    return PreparedData.open(mixed.folder.prepared_dir)


@pytest.fixture(scope="module")
def processor(data: PreparedData) -> Any:
    """What transformers makes of the tokenizer's folder."""
    return processor_of(data.tokenizer_dir)


def processor_of(folder: Path) -> Any:
    make: Any = AutoProcessor
    return make.from_pretrained(str(folder))


IMAGE = {"type": "image"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "image": [{"role": "user", "content": [IMAGE, {"type": "text", "text": " What? "}]}],
    "two": [{"role": "user", "content": [IMAGE, IMAGE, {"type": "text", "text": "Which?"}]}],
    "last": [{"role": "user", "content": [{"type": "text", "text": "Look:"}, IMAGE]}],
    "between": [
        {"role": "user", "content": [{"type": "text", "text": "See "}, IMAGE, {"type": "text", "text": "\n there"}]}
    ],
    "text": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    "second turn": [
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "What?"}]},
    ],
}


@pytest.mark.parametrize("system", ["", "Be brief. "], ids=["plain", "system"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_has_the_tokens_that_gemmas_processor_gives_it(
    data: PreparedData, processor: Any, name: str, system: str
) -> None:
    messages = [*CONVERSATIONS[name], {"role": "assistant", "content": [{"type": "text", "text": "A tree."}]}]
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    contents = [draw(seed) for seed in range(sum(part is IMAGE for each in messages for part in each["content"]))]
    row = {"messages": messages, "images": [{"bytes": content} for content in contents]}
    turns = turn_format(data.tokenizer_dir, "it")
    (ours,) = turns.tokenize([conversation_of(row, DataSpec(format="messages"))])
    text = processor.apply_chat_template(messages, tokenize=False)
    theirs = processor(text=text, images=[decode(each) for each in contents] or None, add_special_tokens=False)
    assert ours.ids == list(np.asarray(theirs["input_ids"]).reshape(-1))
    image_places: Any = np.flatnonzero(np.asarray(theirs["token_type_ids"])) if contents else []
    assert [place for place, number in enumerate(ours.ids) if number == turns.special.image] == list(image_places)
    answer = turns.tokenizer.decode([number for number, learned in zip(*_columns(ours), strict=True) if learned])
    assert answer.count("A tree.") == 1


def _columns(row: Any) -> tuple[list[int], list[bool]]:
    return row.ids, row.is_target


def test_pixels_are_those_of_gemmas_processor(data: PreparedData, processor: Any) -> None:
    assert data.images is not None
    for number in range(3):
        image = decode(data.images.encoded(number))
        expected = processor.image_processor(images=[image], return_tensors="np")["pixel_values"]
        assert np.array_equal(data.images.pixels([number]), expected)
        assert expected.shape == (1, 3, 28, 28)


def test_images_are_kept_once_and_counted(mixed: Run, data: PreparedData) -> None:
    summary = json.loads((mixed.folder.prepared_dir / "summary.json").read_text())
    shown = len(data.images.shown_M) if data.images else 0
    assert data.images is not None
    assert (len(data.images), shown) == (32, 40)  # the last is shown by nine rows
    assert summary["counts"]["images"] == 32
    rows = [data.train.images.of(row) for row in range(len(data.train))] if data.train.images else []
    counts = [int((data.train.ids(row) == data.special["image"]).sum()) for row in range(len(data.train))]
    assert [len(images) * TOKENS for images in rows] == counts
    assert set(map(len, rows)) == {0, 1, 2}


def objective_of(run: Run, attention: str) -> Objective:
    recipe = Recipe.model_validate(recipe_with(sees("rows.jsonl")))
    model = build_model(recipe, PreparedData.open(run.folder.prepared_dir), CPU).model
    model.set_attn_implementation({"text_config": attention, "": "sdpa"})
    model.train()
    return Objective(model, recipe.training, autocast=True)


def test_the_loss_is_that_of_the_models_own_forward_pass(mixed: Run, data: PreparedData) -> None:
    objective = objective_of(mixed, "sdpa")
    chosen = np.arange(8)
    batch = collate(data.train, chosen, data.special["pad"])
    assert batch.token_type_ids_BT is not None
    labels_BT = torch.full_like(batch.ids_BT, -100).flatten()
    labels_BT[batch.positions_N + 1] = batch.labels_N
    with torch.no_grad():
        own = objective.model(
            input_ids=batch.ids_BT,
            pixel_values=batch.pixel_values_ICHW,
            token_type_ids=batch.token_type_ids_BT,
            labels=labels_BT.view_as(batch.ids_BT),
            use_cache=False,
        ).loss
        assert float(objective(*batch)) / len(batch.labels_N) == pytest.approx(float(own), rel=1e-6)
        other = batch._replace(pixel_values_ICHW=batch.pixel_values_ICHW.flip(-1))  # type: ignore[union-attr]
        assert float(objective(*batch)) != pytest.approx(float(objective(*other)), rel=1e-6)


@pytest.mark.filterwarnings("ignore")  # torch would rather compile flex attention
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_packed_images_have_the_loss_and_gradients_of_the_rows_alone(
    mixed: Run, data: PreparedData, attention: str
) -> None:
    objective, pad = objective_of(mixed, attention), data.special["pad"]
    chosen = np.arange(9)
    packs = best_fit(data.train.lengths_N[chosen], 128)
    assert 1 < len(packs) < 9

    def found(*batches: MicroBatch) -> tuple[float, dict[str, torch.Tensor]]:
        objective.zero_grad()
        has_backward = attention != "flex_attention"  # not without a GPU
        total = 0.0
        with torch.set_grad_enabled(has_backward), torch.compiler.set_stance("force_eager"):
            for batch in batches:
                loss = objective(*batch)
                total += float(loss)
                if has_backward:
                    loss.backward()
        return total, {name: each.grad.clone() for name, each in objective.named_parameters() if each.grad is not None}

    whole = [packs.rows_of(pack) for pack in range(len(packs))]
    packed, gradients = found(collate_packs(data.train, whole, 128, pad))
    alone, expected = found(*(collate(data.train, np.array([row]), pad) for row in chosen))
    assert packed == pytest.approx(alone, rel=1e-6)
    assert gradients.keys() == expected.keys()
    for name in sorted(name for name in expected if not _is_noise(name)):
        gradient = expected[name]
        assert float((gradients[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-9, name


def _is_noise(name: str) -> bool:
    """Whether the gradient of a weight is rounding alone: the bias of keys moves all scores of a query alike."""
    return name.endswith("k_proj.bias")


class Bench:
    """One training of each kind on one process, which the others are compared with."""

    KINDS: dict[str, dict[str, Any]] = {
        "all": {},
        "frozen tower": {"model.freeze": {"modules": ["vision_tower", "multi_modal_projector"]}},
        "lora": {"lora": {"rank": 4, "alpha": 8}},
        "lora and projector": {"lora": {"rank": 4, "alpha": 8, "modules_to_save": ["multi_modal_projector"]}},
        "packed": {"data.packing": True, "data.max_length": 128, "training.global_batch": 4, "training.micro_batch": 1},
    }

    def __init__(self, folder: Path, prepared: Run) -> None:
        self.folder, self._prepared = folder, prepared
        self.reference = cache(self._reference)
        self.trained = cache(self._train)

    def run(self, name: str, kind: str, changes: dict[str, Any]) -> Run:
        recipe = Recipe.model_validate(yaml_of(self._prepared.folder))
        changed = sees(str(recipe.data.train), **{"data.eval_share": 0.2}) | self.KINDS[kind] | changes
        return Run(self.folder / name, changed)

    def _reference(self, kind: str) -> Run:
        run = self.run(f"{kind}-one", kind, {})
        assert run.train_here()["outcome"] == "finished"
        return run

    def _train(self, kind: str, strategy: str) -> Run:
        run = self.run(f"{kind}-{strategy}", kind, STRATEGIES[strategy])
        shutil.copytree(self.reference(kind).folder.prepared_dir, run.folder.prepared_dir)
        assert run.train(2)["outcome"] == "finished", run.log()
        return run


def yaml_of(folder: RunFolder) -> dict[str, Any]:
    import yaml

    recipe: dict[str, Any] = yaml.safe_load(folder.run_file.read_text())["recipe"]
    return recipe


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, mixed: Run) -> Bench:
    return Bench(tmp_path_factory.mktemp("vision"), mixed)


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("all", "ddp"),
        ("all", "fsdp"),
        ("all", "zero-3"),
        ("lora", "ddp"),
        ("lora", "zero-3"),
        ("packed", "fsdp"),
        ("lora and projector", "ddp"),
        slow("all", "zero-1"),
        slow("all", "zero-2"),
        *(slow("frozen tower", name) for name in STRATEGIES),
        *(slow("lora", name) for name in ("fsdp", "zero-1", "zero-2")),
        *(slow("lora and projector", name) for name in ("fsdp", "zero-2", "zero-3")),
        *(slow("packed", name) for name in ("ddp", "zero-1", "zero-2", "zero-3")),
    ],
)
def test_two_ranks_of_which_one_may_see_no_image_train_as_one_process(bench: Bench, kind: str, strategy: str) -> None:
    run, reference = bench.trained(kind, strategy), bench.reference(kind)
    assert_equal_up_to_rounding(run, reference)
    weights, expected = final_of(run), final_of(reference)
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        if not _is_noise(name):
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize(("kind", "strategy"), [("all", "ddp"), slow("all", "fsdp"), slow("lora", "zero-3")])
def test_a_resumed_training_on_images_repeats_the_uninterrupted_one_bit_by_bit(
    bench: Bench, tmp_path: Path, kind: str, strategy: str
) -> None:
    run = bench.trained(kind, strategy)
    again = run.copy(tmp_path / "run")
    shutil.rmtree(again.folder.final_dir)
    shutil.rmtree(again.folder.checkpoints_dir / "step-4")
    assert again.train(2)["outcome"] == "finished", again.log()
    assert again.events("resumed")[0]["step"] == 2
    assert again.losses() == run.losses()
    assert again.evaluations() == run.evaluations()
    expected = final_of(run)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in final_of(again).items())


def test_a_frozen_tower_keeps_its_weights_and_a_trained_one_learns(bench: Bench) -> None:
    frozen, trained = (final_of(bench.reference(kind)) for kind in ("frozen tower", "all"))
    tower = [name for name in frozen if "vision_tower" in name]
    assert tower
    assert any(not torch.equal(frozen[name], trained[name]) for name in tower)
    start = build_model(Recipe.model_validate(yaml_of(bench.reference("all").folder)), _data_of(bench), CPU).model
    begun = {name.removeprefix("model."): parameter for name, parameter in start.named_parameters()}
    assert all(torch.equal(frozen[name], begun[name.removeprefix("model.")]) for name in tower)


def _data_of(bench: Bench) -> PreparedData:
    return PreparedData.open(bench.reference("all").folder.prepared_dir)


@pytest.mark.parametrize("strategy", ["fsdp", "zero-3"])
def test_sharded_ranks_of_which_some_show_images_answer_together(bench: Bench, strategy: str) -> None:
    changes = {"training.max_steps": 2, "evaluation.generation": {"rows": 5, "max_new_tokens": 4}}
    run = bench.run(f"answers-{strategy}", "all", changes | STRATEGIES[strategy])
    assert run.train(2)["outcome"] == "finished", run.log()
    alone = bench.run(f"answers-{strategy}-alone", "all", changes)
    assert alone.train_here()["outcome"] == "finished"
    found, expected = (json.loads(each.folder.evaluation_file.read_text()) for each in (run, alone))
    assert found["untrained"] == expected["untrained"]
    assert found["trained"]["examples"] == expected["trained"]["examples"]


def test_bad_images_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = caption_rows(tmp_path, 40, ".jpg")
    (tmp_path / rows[3]["image"]).unlink()
    (tmp_path / rows[5]["image"]).write_bytes(b"no image at all")
    broken = tmp_path / rows[7]["image"]
    broken.write_bytes(broken.read_bytes()[:300])
    rows[9]["image"] = "https://example.org/cat.png"
    rows[11]["image"] = {"bytes": None, "path": None}
    rows[13]["image"] = "data:image/png;base64,!!!"
    changes = sees(write(tmp_path / "rows.jsonl", rows), **{"data.max_bad_share": 0.2})
    summary = prepare(Run(tmp_path / "runs" / "run", changes).folder)
    assert summary["left_out"] == {"missing_image": 3, "corrupt_image": 3}
    assert summary["train"]["rows"] + summary["eval"]["rows"] == 34
    report = [json.loads(line) for line in (tmp_path / "runs/run/prepared/bad_rows.jsonl").read_text().splitlines()]
    assert sorted(each["line"] for each in report) == [4, 6, 8, 10, 12, 14]


def test_too_many_bad_images_refuse_the_data(tmp_path: Path) -> None:
    rows = caption_rows(tmp_path, 20)
    for row in rows[:5]:
        (tmp_path / row["image"]).write_bytes(b"")
    run = Run(tmp_path / "runs" / "run", sees(write(tmp_path / "rows.jsonl", rows)))
    with pytest.raises(DataError, match=r"5 of 20 rows .* 5 corrupt_image"):
        prepare(run.folder)


def test_rows_are_held_out_by_what_they_show_wherever_it_lies(tmp_path: Path) -> None:
    def held_out(place: Path, prefix: str) -> list[str]:
        rows = caption_rows(place, 30)
        for row in rows:
            row["caption"] = "the same"
            row["image"] = prefix + row["image"]
        run = Run(place / "runs" / "run", sees(write(place / "rows.jsonl", rows), **{"data.eval_share": 0.2}))
        prepare(run.folder)
        prepared = PreparedData.open(run.folder.prepared_dir)
        assert prepared.eval.images is not None
        return sorted(str(number) for row in range(len(prepared.eval)) for number in prepared.eval.images.of(row))

    here = held_out(tmp_path / "a", "")
    assert 1 < len(here) < 15
    assert here == held_out(tmp_path / "b", f"{tmp_path / 'b'}/")


def test_an_exchanged_image_is_prepared_anew_and_a_begun_run_keeps_its_own(tmp_path: Path) -> None:
    rows = caption_rows(tmp_path, 20)
    changes = sees(write(tmp_path / "rows.jsonl", rows))
    first, second = (Run(tmp_path / "runs" / name, changes) for name in ("first", "second"))
    prepare(first.folder)
    before = (first.folder.prepared_dir / "images.bin").read_bytes()
    (tmp_path / rows[0]["image"]).write_bytes(draw(999))
    prepare(second.folder)
    assert (second.folder.prepared_dir / "images.bin").read_bytes() != before
    prepare(first.folder)
    assert (first.folder.prepared_dir / "images.bin").read_bytes() == before


def test_the_same_bytes_come_from_one_process_and_from_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = sees(write(tmp_path / "rows.jsonl", mixed_rows(tmp_path, 60)))
    one, two = (Run(tmp_path / name / "run", changes) for name in ("one", "two"))
    prepare(one.folder)
    monkeypatch.setattr("hpcgemma.train.prepare.WORKERS_FROM_BYTES_OF_IMAGE_ROWS", 1)
    monkeypatch.setattr("hpcgemma.train.prepare.cores", lambda: 2)
    monkeypatch.setattr("hpcgemma.train.data.sources._CHUNK_BYTES_OF_IMAGE_ROWS", 1000)
    prepare(two.folder)
    for path in one.folder.prepared_dir.rglob("*"):
        if path.is_file() and path.name != "summary.json":
            other = two.folder.prepared_dir / path.relative_to(one.folder.prepared_dir)
            assert path.read_bytes() == other.read_bytes(), path.name


def test_a_row_whose_image_would_be_cut_is_left_out(tmp_path: Path) -> None:
    rows = caption_rows(tmp_path, 20)
    text = "word " * 60
    rows[0] = {"image": rows[0]["image"], "caption": text}  # can be cut: its image comes first
    asked = [{"type": "text", "text": text}, {"type": "image", "path": rows[1]["image"]}]
    answers = [{"role": "assistant", "content": "yes"}]
    messages = [{"role": "user", "content": [{"type": "image", "path": row["image"]}]} for row in rows[2:]]
    several = [{"messages": [each, *answers]} for each in messages]
    several.append({"messages": [{"role": "user", "content": asked}, *answers]})
    changes = {"data.max_length": 40, "data.too_long": "truncate", "data.max_bad_share": 0.2}
    summary = prepare(Run(tmp_path / "a" / "run", sees(write(tmp_path / "a.jsonl", rows), **changes)).folder)
    assert summary["left_out"] == {}
    assert summary["counts"]["truncated_rows"] == 1
    summary = prepare(Run(tmp_path / "b" / "run", sees(write(tmp_path / "b.jsonl", several), **changes)).folder)
    assert summary["left_out"] == {"too_long": 1}


def test_a_finished_adapter_run_has_its_processor_beside_it(bench: Bench) -> None:
    final = bench.reference("lora").folder.final_dir
    assert type(processor_of(final)).__name__ == "Gemma3Processor"
    assert load_file(final / "adapter_model.safetensors")
    assert not any("vision" in name for name in final_of(bench.reference("lora")))


def test_the_image_tokens_of_tokenizer_and_model_must_be_the_same(data: PreparedData) -> None:
    recipe = Recipe.model_validate(recipe_with(sees("x", **{"model.config": {**MODEL, "image_token_index": 5}})))
    with pytest.raises(Exception, match="stands for a piece of an image, and the model takes 5 for one"):
        build_model(recipe, data, CPU)


def test_a_model_learns_to_say_what_it_sees(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(60):
        colour = ("red", "green", "blue")[number % 3]
        shade = 180 + number
        rows.append({"image": f"images/{number}.png", "caption": colour})
        pixel = tuple(shade if name == colour else 20 for name in ("red", "green", "blue"))
        Pillow.new("RGB", (30, 30), pixel).save(tmp_path / f"images/{number}.png")
    changes = {
        "data.eval_share": 0.25,
        "data.deduplicate": False,
        "training.max_steps": 60,
        "training.epochs": 30,
        "optimizer.learning_rate": 0.005,
        "evaluation.every_steps": None,
        "evaluation.generation": {"rows": 12, "max_new_tokens": 4},
        "checkpoint.every_steps": 60,
    }
    run = Run(tmp_path / "runs" / "run", sees(write(tmp_path / "rows.jsonl", rows), **changes))
    assert run.train_here()["outcome"] == "finished"
    scores = json.loads(run.folder.evaluation_file.read_text())
    assert scores["untrained"]["exact_match"] == 0
    assert scores["trained"]["exact_match"] == 100
