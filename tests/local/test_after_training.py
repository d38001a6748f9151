"""What is done with a trained model, by the commands that a user types: one tiny training, used by all tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpcgemma.cli.choosing_model import require_model
from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.recipes.types import Recipe
from hpcgemma.train import exporting, trained_model
from hpcgemma.train.commands.evaluate import evaluate
from hpcgemma.train.commands.export import export
from hpcgemma.train.commands.generate import generate
from hpcgemma.train.data.prepared import PreparedData
from tests.scenario import Terminal
from tests.train.launch import Run, recipe_with

# peft 0.21 asks transformers for a name that is to go in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CHANGES: dict[str, Any] = {
    "training.max_steps": 6,
    "model.config.attention_dropout": 0.0,
    "lora": {"rank": 4, "alpha": 8, "modules_to_save": ["embed_tokens", "lm_head"]},
    "evaluation.every_steps": 3,
    "evaluation.clip_model": None,
    "evaluation.generation": {"rows": 5, "max_new_tokens": 12, "every_steps": 4},
    "evaluation.targets": {"perplexity": {"at_most": 1e6}, "bleu4": {"at_least": 99}, "clip_score": {"at_least": 1}},
    "checkpoint.every_steps": 3,
}

WHOLE: dict[str, Any] = {"training.max_steps": 3, "evaluation.every_steps": None}


def make_known(run: Run) -> None:
    """Give a run of the trainer alone what the launcher writes into run.yaml, by which commands find it."""
    content = yaml.safe_load(run.folder.run_file.read_text())
    plan = {"run_name": run.folder.path.name, "profile": "local", "recipe": "tiny", "scheduler": "local"}
    run.folder.run_file.write_text(yaml.safe_dump(content | {"schema_version": 1, "created": 0.0, "plan": plan}))


def trained(path: Path, changes: dict[str, Any]) -> Run:
    run = Run(path, changes)
    assert run.train_here()["outcome"] == "finished"
    make_known(run)
    return run


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six steps of adapters, with answers before, during and after."""
    return trained(tmp_path_factory.mktemp("adapted") / "captions", CHANGES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three steps of a whole model."""
    return trained(tmp_path_factory.mktemp("whole") / "whole", WHOLE)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """A terminal whose commands compute on the CPU."""
    root = tmp_path_factory.mktemp("shell")
    environment = {"HPCGEMMA_CONFIG_DIR": str(root), "HPCGEMMA_DATA_DIR": str(root), "HPCGEMMA_DEVICE": "cpu"}
    return Terminal(root, environment | {"OMP_NUM_THREADS": "1"})


class Programs:
    """What the commands start, in this process: a process of its own takes seconds to import torch."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, name: str, word: Path, checkpoint: str | None = None, **request: Any) -> Any:
        """Return what a program says of a run or folder, as JSON."""
        program, defaults = PROGRAMS[name]
        chosen = require_model(str(word), checkpoint)
        self._capture.readouterr()
        assert program({**chosen, **defaults, "as_json": True, **request}) == 0
        lines = self._capture.readouterr().out.splitlines()
        begin = next(place for place, line in enumerate(lines) if line in ("{", "["))  # after what libraries say
        return json.loads("\n".join(lines[begin:]))


PROGRAMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "evaluate": (
        evaluate,
        {"data": None, "rows": None, "max_new_tokens": None, "generation": True, "clip_model": None},
    ),
    "generate": (
        generate,
        {
            "system": "",
            "images": [],
            "source_lang": None,
            "target_lang": None,
            "max_new_tokens": 12,
            "temperature": 0.0,
            "top_p": 1.0,
            "seed": 0,
            "raw": False,
        },
    ),
    "export": (export, {"to": None, "merge": None, "dtype": None, "force": False}),
}


@pytest.fixture
def programs(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Programs:
    for name, value in (("HPCGEMMA_DEVICE", "cpu"), ("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    return Programs(capfd)


def evaluation(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run.folder.evaluation_file.read_text())
    return content


def test_a_training_writes_scores_before_during_and_after_and_whether_targets_are_met(adapted: Run) -> None:
    scores = evaluation(adapted)
    assert list(scores) == ["untrained", "step-4", "trained"]
    lowest = min(adapted.evaluations().values())
    assert scores["trained"]["eval_loss"] == lowest
    assert {name: verdict["met"] for name, verdict in scores["trained"]["targets"].items()} == {
        "perplexity": True,
        "bleu4": False,
        "clip_score": None,
    }
    assert {"chrf", "rouge1", "rouge2", "rougeL", "instruction_following", "exact_match"} <= scores["step-4"].keys()
    lines = [json.loads(line) for line in adapted.folder.metrics_file.read_text().splitlines()]
    assert [line["step"] for line in lines if "bleu4" in line] == [0, 4, 6]


def test_evaluate_repeats_what_the_training_measured(adapted: Run, shell: Terminal) -> None:
    found = shell.json("evaluate", str(adapted.folder.path))
    then = evaluation(adapted)["trained"]
    assert found["eval_loss"] == pytest.approx(then["eval_loss"], abs=1e-6)
    assert (found["rows"], found["answers"]) == (7, 5)
    names = ("bleu4", "chrf", "rougeL", "exact_match", "instruction_following", "examples", "targets")
    assert {name: found[name] for name in names} == {name: then[name] for name in names}
    written = Path(found["written"])
    assert written.parent == adapted.folder.path / "evaluations"
    assert json.loads(written.read_text())["eval_loss"] == found["eval_loss"]


def test_evaluate_takes_any_checkpoint_and_prints_a_table(adapted: Run, shell: Terminal) -> None:
    said = shell.call("evaluate", str(adapted.folder.path), "--checkpoint", "3", "--no-generation").stdout
    facts = dict(line.split(None, 1) for line in said.splitlines() if not line.startswith("target"))
    assert facts["model"] == "run captions, step 3"
    assert float(facts["eval_loss"]) == pytest.approx(adapted.evaluations()[3], abs=1e-4)
    assert "target    bleu4, at least 99: not measured" in said or "bleu4, at least 99: not measured" in said


def test_evaluate_of_part_of_the_rows_is_the_loss_of_the_first(
    adapted: Run, programs: Programs, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in (adapted.folder.prepared_dir / "eval_rows.jsonl").read_text().splitlines()]
    file = tmp_path / "rows.jsonl"
    svgs = [{"svg": row["prompt"][0]["text"].partition("\n")[2], "caption": row["answer"]} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in svgs))
    own = programs("evaluate", adapted.folder.path, generation=False, rows=3)
    given = programs("evaluate", adapted.folder.path, generation=False, rows=3, data=str(file))
    assert given["eval_loss"] == own["eval_loss"]
    assert (given["rows"], given["tokens"]) == (3, own["tokens"])


def test_generate_answers_as_the_training_did(adapted: Run, shell: Terminal, programs: Programs) -> None:
    examples = evaluation(adapted)["trained"]["examples"][:3]
    texts = [example["prompt"].partition("\n")[2] for example in examples]
    found = programs("generate", adapted.folder.path, texts=texts)
    assert found == [
        {"prompt": text, "answer": example["answer"]} for text, example in zip(texts, examples, strict=True)
    ]
    # One text is answered token by token.
    said = shell.call("generate", str(adapted.folder.path), texts[0], "--checkpoint", "best", "--max-new-tokens", "12")
    assert said.stdout == examples[0]["answer"] + "\n"


def test_generate_draws_the_same_again_under_the_same_seed(adapted: Run, programs: Programs) -> None:
    drawn: dict[str, Any] = {
        "texts": ["a small red", "two large"],
        "raw": True,
        "temperature": 2.0,
        "top_p": 0.9,
        "max_new_tokens": 8,
    }
    one, again, other = (programs("generate", adapted.folder.path, **drawn, seed=seed) for seed in (1, 1, 2))
    assert [each["prompt"] for each in one] == ["a small red", "two large"]
    assert one == again != other


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(6, 30)[None], use_cache=False).logits
    return found


def of_run(run: Run, changes: dict[str, Any], checkpoint: int | None) -> Any:
    recipe = Recipe.model_validate(recipe_with(changes))
    prepared = PreparedData.open(run.folder.prepared_dir)
    return trained_model.of_run(run.folder, recipe, prepared, checkpoint, torch.device("cpu")).model


def test_export_merges_adapters_into_a_model_that_loads_alone(
    adapted: Run, shell: Terminal, programs: Programs, tmp_path: Path
) -> None:
    target = tmp_path / "exported"
    said = shell.json("export", str(adapted.folder.path), "--to", str(target))
    assert (said["kind"], said["dtype"], said["folder"]) == ("merged", "float32", str(target))
    assert said["max_logit_difference"] < 1e-4
    load: Any = AutoModelForCausalLM
    torch.testing.assert_close(
        logits(load.from_pretrained(str(target))), logits(of_run(adapted, CHANGES, None)), atol=1e-5, rtol=1e-5
    )
    tokenizer: Any = AutoTokenizer
    assert "<start_of_turn>" in tokenizer.from_pretrained(str(target)).chat_template
    assert not [path for path in tmp_path.iterdir() if path != target]
    again = shell.call("export", str(adapted.folder.path), "--to", str(target), code=2)
    assert "exists already" in again.stderr
    assert [each["prompt"] for each in programs("generate", target, texts=["Hello"])] == ["Hello"]


def test_the_model_card_says_what_it_is_and_nothing_of_this_machine(
    adapted: Run, programs: Programs, tmp_path: Path
) -> None:
    target = tmp_path / "exported"
    programs("export", adapted.folder.path, "6", to=str(target), dtype="bf16")
    card = (target / "README.md").read_text()
    for said in (
        "# captions",
        "none: a gemma2 from random weights",
        "the checkpoint at step 6",
        "max_steps: 6",
        "seed",
    ):
        assert said in card
    assert str(adapted.folder.path.parent) not in card
    programs("export", adapted.folder.path, to=str(target), force=True)
    card = (target / "README.md").read_text()
    assert '| target bleu4 | {"at_least": 99.0}: missed |' in card
    assert f"| eval_loss | {evaluation(adapted)['trained']['eval_loss']:.4g} |" in card


def test_an_export_that_differs_from_its_model_is_removed(
    adapted: Run, programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(exporting.TOLERANCE, torch.float32, -1.0)
    with pytest.raises(HpcGemmaError, match="gives logits that differ by"):
        programs("export", adapted.folder.path, to=str(tmp_path / "exported"))
    assert list(tmp_path.iterdir()) == []


def test_export_writes_adapters_of_a_base_in_a_folder(whole: Run, programs: Programs, tmp_path: Path) -> None:
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    programs("export", whole.folder.path, to=str(base))
    load: Any = AutoModelForCausalLM
    expected = logits(of_run(whole, WHOLE, None))
    torch.testing.assert_close(logits(load.from_pretrained(str(base))), expected, atol=0.0, rtol=0.0)
    changes = {
        "model": {"path": str(base)},
        "tokenizer": {},
        "lora": {"rank": 2, "alpha": 4},
        "training.max_steps": 2,
        "evaluation.every_steps": None,
    }
    run = trained(tmp_path / "second", changes)
    said = programs("export", run.folder.path, merge=False, to=str(adapters))
    assert (said["kind"], said["max_logit_difference"]) == ("adapter", 0.0)
    peft: Any = AutoPeftModelForCausalLM
    expected = logits(of_run(run, changes, None))
    torch.testing.assert_close(logits(peft.from_pretrained(str(adapters))), expected)
    # A folder with adapters is evaluated with its base.
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Hello", "completion": "a red circle"}) + "\n")
    found = programs("evaluate", adapters, data=str(rows), max_new_tokens=4)
    assert (found["rows"], found["answers"], found["written"]) == (1, 1, None)
    with pytest.raises(InputError, match="has no adapters: all its weights were trained"):
        programs("export", whole.folder.path, merge=False)


def test_bad_input_is_answered_with_what_is_valid(adapted: Run, shell: Terminal, tmp_path: Path) -> None:
    run = str(adapted.folder.path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letters").write_text("dear")
    new = Run(tmp_path / "new", CHANGES)
    make_known(new)
    cases = [
        (("evaluate", "no-such-run"), "'no-such-run' is neither a run of hpcgemma nor a folder with a model"),
        (("evaluate", str(new.folder.path)), "run new has no checkpoint yet"),
        (("generate", run, "x", "--checkpoint", "5"), "--checkpoint takes one of: 3, 6, best, latest, final"),
        (("generate", run, ""), "there is no text to answer, or an empty one"),
        (("generate", run, "--file", "none.txt"), "--file none.txt cannot be read"),
        (("evaluate", run, "--clip-model", "./none"), "--clip-model ./none is not a folder"),
        (("export", run, "--to", str(tmp_path / "full")), "exists already"),
        (("export", run, "--to", str(tmp_path / "full"), "--force"), "holds no exported model, so it is not replaced"),
    ]
    for arguments, problem in cases:
        said = shell.call(*arguments, code=2)
        assert problem in said.stderr, said.stderr
        assert "Traceback" not in said.stderr
        assert said.stdout == ""


def test_a_damaged_checkpoint_is_named(adapted: Run, programs: Programs, tmp_path: Path) -> None:
    copy = adapted.copy(tmp_path / "copy")
    for path in (copy.folder.checkpoints_dir / "step-3" / "state").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"checkpoints/step-3 is damaged: .* has 100 bytes"):
        programs("evaluate", copy.folder.path, "3")
    shutil.rmtree(copy.folder.prepared_dir)
    with pytest.raises(InputError, match="the run has not begun"):
        programs("evaluate", copy.folder.path)


def test_what_only_the_program_can_know_is_refused_too(adapted: Run, programs: Programs, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trained on svg_caption, which has no languages"):
        programs("generate", adapted.folder.path, texts=["x"], target_lang="de")
    with pytest.raises(InputError, match=r"none\.jsonl"):
        programs("evaluate", adapted.folder.path, data=str(tmp_path / "none.jsonl"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        programs("generate", tmp_path / "model", texts=["x"])


def test_adapters_beside_a_base_in_4_bits_are_merged_into_the_whole_one(programs: Programs, tmp_path: Path) -> None:
    changes = {
        "training.max_steps": 2,
        "lora": {"rank": 2, "alpha": 4},
        "model.quantization": {"bits": 4, "type": "nf4"},
        "evaluation.every_steps": 2,
    }
    run = trained(tmp_path / "quantized", changes)
    found = programs("evaluate", run.folder.path, generation=False)
    assert found["eval_loss"] == pytest.approx(run.evaluations()[2], abs=1e-6)
    said = programs("export", run.folder.path, to=str(tmp_path / "exported"))
    assert said["notes"][0].startswith("the adapters were trained beside a base in 4 bits")
    assert said["max_logit_difference"] < 1e-4
    load: Any = AutoModelForCausalLM
    model = load.from_pretrained(str(tmp_path / "exported"))
    assert {each.dtype for each in model.parameters()} == {torch.float32}


def test_an_evaluation_of_some_rows_takes_the_first(adapted: Run, tmp_path: Path) -> None:
    few = Run(
        tmp_path / "few", {**CHANGES, "evaluation.rows": 3, "evaluation.generation": None, "training.max_steps": 3}
    )
    few.train_here()
    prepared = PreparedData.open(few.folder.prepared_dir)
    model = of_run(few, CHANGES, 3)
    losses, count = 0.0, 0
    for row in range(3):
        ids_T = torch.from_numpy(prepared.eval.ids(row).astype("int64"))
        is_target_T = torch.from_numpy(prepared.eval.is_target(row).copy())[1:]
        with torch.no_grad():
            logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1]
        losses += float(functional.cross_entropy(logits_TV[is_target_T], ids_T[1:][is_target_T], reduction="sum"))
        count += int(is_target_T.sum())
    assert few.evaluations()[3] == pytest.approx(losses / count, rel=1e-5)
    assert few.evaluations()[3] != adapted.evaluations()[3]
