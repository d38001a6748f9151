"""What generated answers score, each metric against values computed by hand or by the library that defines it."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from hpcgemma.configfile import Document, build
from hpcgemma.errors import ConfigError
from hpcgemma.recipes.fingerprint import recipe_fingerprint
from hpcgemma.recipes.types import EvaluationSpec, GenerationSpec, Recipe, TargetSpec
from hpcgemma.train.scoring import perplexity, score
from hpcgemma.train.scoring.clip import Clip, clip_score
from hpcgemma.train.scoring.drawing import SIDE_PX, Drawer, svg_in
from hpcgemma.train.scoring.instructions import has_format, has_length, instruction_following, speaks_alike
from hpcgemma.train.scoring.overlap import overlap
from hpcgemma.train.scoring.targets import judge, sentence_of
from tests.train.launch import recipe_with

CPU = torch.device("cpu")
XMLNS = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
RED = f'<svg {XMLNS} viewBox="0 0 10 10"><rect width="10" height="10" fill="red"/></svg>'
TRUE = ["two small red circles at the top", "a large blue square on the left"]


def test_equal_answers_score_full_marks() -> None:
    scores = overlap(TRUE, TRUE)
    assert {name: value for name, value in scores.items() if "signature" not in name} == {
        "notes": [],
        "bleu4": 100.0,
        "chrf": 100.0,
        "rouge1": 100.0,
        "rouge2": 100.0,
        "rougeL": 100.0,
        "exact_match": 100.0,
    }
    assert "|tok:13a|" in scores["bleu_signature"]


def test_rouge_is_what_can_be_counted_by_hand() -> None:
    scores = overlap(["the red cat sat"], ["the cat sat down"])
    # 3 of 4 words both ways; of 3 pairs one, "cat sat"; the longest common sequence is "the cat sat".
    assert (scores["rouge1"], scores["rouge2"], scores["rougeL"]) == (75.0, 33.33, 75.0)
    assert scores["exact_match"] == 0.0


def test_rouge_knows_the_words_of_other_scripts() -> None:
    assert overlap(["красный круг"], ["красный круг слева"])["rouge1"] == 80.0


def test_answers_that_say_nothing_score_nothing() -> None:
    scores = overlap(["", ""], TRUE)
    assert [scores[name] for name in ("bleu4", "chrf", "rouge1", "rougeL", "exact_match")] == [0.0] * 5


@pytest.mark.parametrize(
    ("answer", "reference", "passes"),
    [
        ("a red circle", "a circle", True),
        ("  \n", "a circle", False),
        ("a red circle<end_of_turn>", "a circle", False),
        ("<|im_start|>assistant\na circle", "a circle", False),
        ("model\na circle", "a circle", False),
        ("the model is red", "a circle", True),
        ("an <end_of_turn> ends it", "<end_of_turn> ends a turn", True),
        ('{"colour": "red"}', '{"colour": "blue"}', True),
        ('{"colour": "red"', '{"colour": "blue"}', False),
        ("red", "17", True),
    ],
)
def test_format_is_checked(answer: str, reference: str, passes: bool) -> None:
    assert has_format(answer, reference) is passes


@pytest.mark.parametrize(
    ("words", "limits", "passes"),
    [
        (4, (None, None), True),
        (16, (None, None), True),
        (3, (None, None), False),
        (17, (None, None), False),
        (17, (None, 20), True),
        (21, (None, 20), False),
        (1, (1, None), True),
        (2, (3, 20), False),
    ],
)
def test_length_is_half_to_twice_the_true_one_or_what_the_recipe_says(
    words: int, limits: tuple[int | None, int | None], passes: bool
) -> None:
    assert has_length(" ".join(["word"] * words), " ".join(["true"] * 8), *limits) is passes


def test_language_is_that_of_the_true_answer_where_it_is_long_enough_to_tell() -> None:
    german = "Die kleine Katze sitzt heute auf der roten Matte vor dem Haus"
    english = "The little cat is sitting on the red mat in front of the house today"
    assert speaks_alike("Der Hund liegt unter dem alten Baum im Garten", german) is True
    assert speaks_alike(english, german) is False
    assert speaks_alike(english, "rot") is None


def test_instruction_following_is_the_mean_of_its_checks() -> None:
    found = instruction_following(
        ["a red circle", "<end_of_turn>"], ["a red square", "a blue one and two"], GenerationSpec()
    )
    assert found == {
        "instruction_following": 50.0,
        "instruction_checks": {"format": 50.0, "length": 50.0},
        "notes": ["language: not checked, the true answers are too short to tell theirs"],
    }


def test_perplexity_of_a_hopeless_model_is_infinite() -> None:
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) == float("inf")


def drawn(svg: str) -> np.ndarray[Any, Any] | None:
    with Drawer() as drawer:
        image = drawer.draw(svg)
    return None if image is None else np.asarray(image)


def test_a_drawing_is_rendered_square_on_white() -> None:
    wide = drawn(f'<svg {XMLNS} viewBox="0 0 20 10"><rect width="20" height="10" fill="red"/></svg>')
    assert wide is not None
    assert wide.shape == (SIDE_PX, SIDE_PX, 3)
    assert wide[SIDE_PX // 2, SIDE_PX // 2].tolist() == [255, 0, 0]
    assert wide[2, SIDE_PX // 2].tolist() == [255, 255, 255]


def test_a_drawing_without_a_namespace_is_rendered_as_those_that_hpcgemma_draws() -> None:
    image = drawn('<svg viewBox="0 0 90 90"><circle cx="45" cy="45" r="40" fill="blue"/></svg>')
    assert image is not None
    assert image[SIDE_PX // 2, SIDE_PX // 2].tolist() == [0, 0, 255]


def test_a_hostile_drawing_reads_no_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (4, 4), (0, 255, 0)).save(secret)
    for reference in (f'href="{secret}"', f'xlink:href="file://{secret}"'):
        image = drawn(f'<svg {XMLNS} viewBox="0 0 10 10"><image width="10" height="10" {reference}/></svg>')
        assert image is not None
        assert (image == 255).all()
    entity = f'<!DOCTYPE svg [<!ENTITY x SYSTEM "file://{secret}">]>'
    assert drawn(f'{entity}<svg {XMLNS} viewBox="0 0 10 10"><text>&x;</text></svg>') is None


def test_a_hostile_drawing_costs_little_time_and_the_next_one_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcgemma.train.scoring.drawing.SECONDS", 0.5)
    levels = "".join(f'<g id="a{level}">{f"""<use href="#a{level - 1}"/>""" * 10}</g>' for level in range(1, 9))
    shapes = f'<defs><rect id="a0" width="5" height="5"/>{levels}</defs>'
    bomb = f'<svg {XMLNS} viewBox="0 0 9 9">{shapes}<use href="#a8"/></svg>'
    huge = f'<svg {XMLNS} width="1000000000" height="1000000000"><rect width="9" height="9"/></svg>'
    began = time.monotonic()
    with Drawer() as drawer:
        assert drawer.draw(bomb) is None
        assert drawer.draw("<svg>no drawing") is None
        drawer.draw(huge)
        assert drawer.draw(RED) is not None
        assert drawer.draw(f"<svg {XMLNS}>{' ' * (1 << 21)}</svg>") is None
    assert time.monotonic() - began < 10


def test_a_drawing_is_found_in_its_prompt() -> None:
    assert svg_in(f"Describe this.\n{RED}\nIn a sentence.") == RED
    assert svg_in("Describe this.") is None


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    words = ["<pad>", "<unk>", "<start>", "<end>", *sorted({word for text in TRUE for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    make: Any = PreTrainedTokenizerFast
    make(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<start>", eos_token="<end>"
    ).save_pretrained(str(folder))
    side: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ids = {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config: Any = CLIPConfig(
        text_config={**side, **ids, "max_position_embeddings": 12},
        vision_config={**side, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(str(folder))
    images: Any = CLIPImageProcessorPil
    images(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(str(folder))
    return folder


def test_the_clip_score_is_the_cosine_of_both_embeddings(clip_folder: Path) -> None:
    prompts = [f"Describe this SVG drawing.\n{RED}", f"Describe this SVG drawing.\n{RED.replace('red', 'blue')}"]
    found = clip_score(TRUE, [*prompts], str(clip_folder), CPU)
    clip = Clip.load(str(clip_folder), CPU)
    expected = []
    with Drawer() as drawer:
        for prompt, text in zip(prompts, TRUE, strict=True):
            image: Any = drawer.draw(svg_in(prompt) or "")
            pixels = torch.from_numpy(np.array(image.resize((32, 32)))).permute(2, 0, 1)[None] / 255
            mean, deviation = (
                torch.tensor(getattr(clip.image_processor, name)).view(1, 3, 1, 1)
                for name in ("image_mean", "image_std")
            )
            ids = torch.tensor([clip.tokenizer(text)["input_ids"]])
            with torch.no_grad():
                seen = clip.model.get_image_features(pixel_values=(pixels - mean) / deviation).pooler_output[0]
                said = clip.model.get_text_features(input_ids=ids).pooler_output[0]
            expected.append(100 * max(0.0, float(seen @ said / (seen.norm() * said.norm()))))
    assert found == {
        "clip_score": pytest.approx(sum(expected) / 2, abs=0.01),
        "clip_rows": 2,
        "notes": [],
    }
    assert clip.scores([Image.new("RGB", (9, 9))], [" ".join(["red"] * 40)])[0] >= 0  # longer than CLIP reads


def test_without_a_clip_there_is_a_sentence_and_all_other_scores() -> None:
    spec = EvaluationSpec(clip_model="no/such-model")
    scores = score(TRUE, TRUE, [f"Describe.\n{RED}"] * 2, spec, CPU)
    assert "clip_score" not in scores
    assert (scores["bleu4"], scores["instruction_following"], scores["rows"]) == (100.0, 100.0, 2)
    assert scores["notes"][-1].startswith("CLIP score: not computed, no CLIP at 'no/such-model', neither as a folder")
    assert "\n" not in scores["notes"][-1]
    assert scores["examples"][0] == {"prompt": f"Describe.\n{RED}", "reference": TRUE[0], "answer": TRUE[0]}


def test_what_needs_a_package_that_is_not_there_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    optional = ("rouge_score", "py3langid", "resvg_py")
    find: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in optional else find(name))
    scores = score(TRUE, TRUE, [f"Describe.\n{RED}"] * 2, EvaluationSpec(), CPU)
    assert not {"rouge1", "clip_score"} & scores.keys()
    assert (scores["bleu4"], scores["instruction_checks"]) == (100.0, {"format": 100.0, "length": 100.0})
    assert [note.partition(" (pip install 'hpcgemma[evaluation]')")[0] for note in scores["notes"]] == [
        "ROUGE: not computed, rouge-score not installed",
        "language: not checked, the package py3langid is not installed",
        "CLIP score: not computed, resvg-py not installed",
    ]


def test_what_has_no_drawing_is_not_asked_of_clip() -> None:
    assert clip_score(TRUE, ["Hello", "World"], "no/such-model", CPU) == {"notes": []}


def test_targets_are_met_missed_or_not_measured() -> None:
    targets = {
        "bleu4": TargetSpec(at_least=20),
        "perplexity": TargetSpec(at_most=8),
        "chrf": TargetSpec(at_least=10, at_most=90),
        "clip_score": TargetSpec(at_least=25),
    }
    verdicts = judge(targets, {"bleu4": 20.0, "perplexity": 8.5, "chrf": 50})
    assert [sentence_of(name, verdict) for name, verdict in verdicts.items()] == [
        "bleu4 20, at least 20: met",
        "perplexity 8.5, at most 8: missed",
        "chrf 50, at least 10 and at most 90: met",
        "clip_score, at least 25: not measured",
    ]


@pytest.mark.parametrize(
    ("targets", "problem"),
    [
        ({"blue4": {"at_least": 20}}, "there is no metric 'blue4'; did you mean 'bleu4'? valid: eval_loss, perplexity"),
        ({"bleu4": {}}, "a target needs at_least or at_most"),
    ],
)
def test_a_target_that_says_nothing_is_refused_when_the_recipe_is_read(targets: dict[str, Any], problem: str) -> None:
    recipe = recipe_with({"evaluation.targets": targets})
    with pytest.raises(ConfigError, match=r"evaluation\.targets") as raised:
        build(Recipe, Document(recipe), subject="recipe tiny")
    assert problem in raised.value.problem


def test_what_only_judges_may_change_between_attempts_and_what_chooses_weights_may_not() -> None:
    def fingerprint(changes: dict[str, Any]) -> str:
        return recipe_fingerprint(Recipe.model_validate(recipe_with(changes)))

    first = fingerprint({})
    for free in ({"evaluation.targets": {"bleu4": {"at_least": 1}}}, {"evaluation.clip_model": None}):
        assert fingerprint(free) == first
    assert fingerprint({"evaluation.rows": 3}) != first


def test_scores_are_json() -> None:
    scores = score(TRUE, TRUE, ["", ""], EvaluationSpec(), CPU)
    assert json.loads(json.dumps(scores)) == scores
