"""What is done with a trained model of images, by the programs that a user's commands start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hpcgemma.errors import InputError
from tests.local.test_after_training import Programs, evaluation, trained
from tests.train.launch import Run
from tests.train.pictures import SEES, caption_rows, write

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps on images, with answers before and after; `rows.jsonl` beside it."""
    folder = tmp_path_factory.mktemp("captions")
    changes = {
        **SEES,
        "data.train": write(folder / "rows.jsonl", caption_rows(folder, 40)),
        "training.max_steps": 2,
        "lora": {"rank": 4, "alpha": 8, "modules_to_save": ["multi_modal_projector"]},
        "evaluation.generation": {"rows": 2, "max_new_tokens": 6},
    }
    return trained(folder / "runs" / "captions", changes)


@pytest.fixture
def programs(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Programs:
    for name, value in (("HPCGEMMA_DEVICE", "cpu"), ("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    return Programs(capfd)


@pytest.fixture
def exported(captions: Run, programs: Programs, tmp_path: Path) -> Path:
    programs("export", captions.folder.path, to=str(tmp_path / "model"), dtype="fp32")
    return tmp_path / "model"


def image_of(captions: Run, number: int) -> Path:
    return captions.folder.path.parents[1] / "images" / f"{number}.png"


def test_evaluate_repeats_what_the_training_measured_of_images(captions: Run, programs: Programs) -> None:
    found, then = programs("evaluate", captions.folder.path), evaluation(captions)["trained"]
    assert found["eval_loss"] == pytest.approx(then["eval_loss"], abs=1e-6)
    assert found["examples"] == then["examples"]


def test_images_of_a_file_are_judged_like_those_of_the_run(captions: Run, programs: Programs, exported: Path) -> None:
    rows = str(captions.folder.path.parents[1] / "rows.jsonl")
    of_run = programs("evaluate", captions.folder.path, data=rows, rows=5)
    of_folder = programs("evaluate", exported, data=rows, rows=5)
    assert (of_run["rows"], of_run["left_out"]) == (5, 0)
    assert of_run["eval_loss"] == pytest.approx(of_folder["eval_loss"], rel=1e-5)


def test_an_image_is_asked_about_as_transformers_would_ask(captions: Run, programs: Programs, exported: Path) -> None:
    image = image_of(captions, 3)
    (found,) = programs("generate", captions.folder.path, texts=["What is it?"], images=[str(image)], max_new_tokens=6)
    make: Any = AutoProcessor
    processor = make.from_pretrained(str(exported))
    auto: Any = AutoModelForImageTextToText
    model = auto.from_pretrained(str(exported)).eval()
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    with Image.open(image) as opened:
        inputs = processor(text=text, images=opened.convert("RGB"), add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert found["answer"] == processor.decode(output, skip_special_tokens=True).strip()


def test_without_words_the_recipe_asks(captions: Run, programs: Programs) -> None:
    image = [str(image_of(captions, 3))]
    silent = programs("generate", captions.folder.path, texts=[""], images=image)
    asked = programs("generate", captions.folder.path, texts=["Describe this image."], images=image)
    assert silent[0]["answer"] == asked[0]["answer"]


def test_what_cannot_be_shown_is_refused(captions: Run, programs: Programs, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for images, said in (([], "there is none"), ([str(tmp_path / "text.png")], "it is none of JPEG, PNG")):
        with pytest.raises(InputError, match=said):
            programs("generate", captions.folder.path, texts=["Hello"], images=images)


def test_the_exported_folder_is_whole(exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "chat_template.jinja", "README.md"} <= names
    assert json.loads((exported / "config.json").read_text())["model_type"] == "gemma3"
