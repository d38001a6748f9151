"""Bad input gets a clear error, the right exit code, and loses nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., str]


@pytest.fixture
def call(tmp_path: Path, own_folders: Path) -> Call:
    """Call hpcgemma in an empty folder, on a machine without Slurm."""

    def run(*arguments: str, code: int, **environment: str) -> str:
        python = Path(sys.executable)
        done = subprocess.run(
            [sys.executable, "-m", "hpcgemma", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PATH": str(python.parent), "PYTHONPATH": str(Path.cwd()), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    return run


TINY = ("submit", "--profile", "local", "--recipe", "svg_captions_tiny")
CASES = {
    "profile": (
        ("submit", "--profile", "leonrdo", "--recipe", "svg_captions_tiny"),
        "Error: there is no profile named 'leonrdo'\n"
        "Try:   did you mean 'leonardo'? valid: generic_slurm, leonardo, local\n",
    ),
    "recipe": (
        ("submit", "--profile", "local", "--recipe", "nope"),
        "Error: there is no recipe named 'nope'\nTry:   valid: gemma2_2b_qlora, gemma2_2b_qlora_tiny, gemma2_9b_lora, ",
    ),
    "data file": (
        (*TINY, "--set", "data.generator=null", "--set", "data.train=gone.jsonl"),
        "gone.jsonl finds no data file; valid are .jsonl",
    ),
    "no data": (
        (*TINY, "--set", "data.generator=null"),
        "Error: data.train is not set\nTry:   --set data.train=FILE.jsonl\n",
    ),
    "type": ((*TINY, "--set", "training.micro_batch=many"), "training.micro_batch: 'many': input should be a valid"),
    "account": (
        ("submit", "--profile", "leonardo", "--recipe", "gemma2_9b_lora"),
        "this site needs an account and none was given",
    ),
    "quantization": (
        (*TINY, "--set", "model.quantization={bits: 4}"),
        "Error: model.quantization keeps frozen weights in 4 bits, and without lora all of them would be trained\n"
        "Try:   --set lora.rank=16, or --set model.quantization=null\n",
    ),
    "one process": (
        (*TINY, "--set", "strategy.name=fsdp", "--set", "resources.gpus_per_node=1"),
        "Error: strategy.name fsdp shards over processes, and resources.nodes 1 x resources.gpus_per_node 1 is one "
        "process\nTry:   --set strategy.name=ddp, or --set resources.gpus_per_node=2\n",
    ),
    "several contradictions": (
        (*TINY, "--set", "training.precision=fp16", "--set", "model.attention=sdpa"),
        "Error: this run would fail: 2 problems\n"
        "  - training.precision fp16 is refused: it needs loss scaling, which hpcgemma does not do "
        "(--set training.precision=bf16, or fp32 on older GPUs)\n"
        "  - model.attention sdpa cannot apply this gemma2's softcap of 50 (model.config.attn_logit_softcapping): it "
        "would train another model (--set model.attention=auto)\n"
        "Try:   mend what is listed; nothing was submitted\n",
    ),
    "TPU package": (
        (
            *("submit", "--profile", "local", "--recipe", "gemma3_270m_tpu_tiny"),
            *("--set", "strategy.name=xla", "--set", "training.global_batch=128"),
        ),
        "Error: strategy.name xla needs the package torch_xla, which is not installed beside hpcgemma\n"
        "Try:   pip install 'hpcgemma[xla]', or without a TPU: --set strategy.name=auto\n",
    ),
    "GPU package": (
        (*TINY, "--set", "training.liger_kernels=true"),
        "Error: training.liger_kernels needs the package liger_kernel, which is not installed beside hpcgemma\n"
        "Try:   pip install 'hpcgemma[liger]', or --set training.liger_kernels=false\n",
    ),
    "another tool's field": (
        (*TINY, "--set", "gradient_checkpointing=true"),
        "--set: gradient_checkpointing: unknown field (here it is training.activation_checkpointing)\n",
    ),
    "model": (
        (*TINY, "--set", "model.path=/nowhere/at/all"),
        "Error: model.path /nowhere/at/all is not a folder\n",
    ),
    "no queue": (
        ("data", "prepare", "--recipe", "svg_captions_tiny", "--submit"),
        "Error: profile 'local' has no queue to submit to\nTry:   leave --submit out, and the work is done here\n",
    ),
    "no links": (
        (*TINY, "--links", "3"),
        "Error: profile 'local' has no queue in which links could wait\n"
        "Try:   leave --links out: a run here has no time limit\n",
    ),
    "no partition": (
        ("doctor", "--profile", "local", "--partition", "spot"),
        "Error: profile 'local' has no partitions and no QOS\n"
        "Try:   leave --partition and --qos out, or name a profile of a cluster\n",
    ),
    "no job": (
        ("data", "prepare", "--recipe", "svg_captions_tiny", "--wait", "--time", "1:00:00"),
        "Error: --time, --wait: only with --submit, which is not given\nTry:   add --submit\n",
    ),
    "run": (("status", "nobody"), "Error: no run of hpcgemma is called 'nobody'\nTry:   hpcgemma status  lists all"),
    "resume": (("resume",), "Error: there is no unfinished run\n"),
    "cancel": (("cancel", "nobody"), "Error: no run of hpcgemma has the name or folder 'nobody'\n"),
    "foreign": (("cancel", "999"), "Error: job 999 was not submitted by hpcgemma\nTry:   scancel 999"),
    "logs": (("logs",), "Error: there are no runs yet\n"),
    "command": (
        ("stauts",),
        "Error: there is no command 'stauts'\nTry:   hpcgemma status  (valid: doctor, drill, data, submit, ",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_says_what_is_wrong_and_what_to_do(call: Call, case: str) -> None:
    arguments, said = CASES[case]
    assert said in call(*arguments, code=2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "rows.jsonl: empty"),
        ("\n\n", "rows.jsonl: empty"),
        ("not json\n", "none of the first 1 rows can be read; the first, line 1, is not JSON"),
        ('{"svg": "a", "caption": "b"}\n[1]\n[2]\n', "2 of the first 3 rows cannot be trained on as svg_caption"),
        ('{"svg": "<svg/>"}\n', "a 'svg_caption' row needs 'svg', 'caption', such as"),
        (
            '{"svg": "a", "caption": ""}\n{"svg": "a", "caption": ""}\n{"svg": "a", "caption": "b"}\n',
            "2 of the first 3",
        ),
        ('{"svg": "a", "caption": ""}\n', "as svg_caption; the first, line 1: its answer is empty"),
    ],
)
def test_a_bad_data_file_is_named_with_its_line(call: Call, tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    error = call(*TINY, "--set", "data.generator=null", "--set", "data.train=rows.jsonl", code=2)
    assert said in error
    assert not (tmp_path / "runs").exists()


def test_a_missing_slurm_is_a_scheduler_error(call: Call, tmp_path: Path) -> None:
    error = call("submit", "--profile", "generic_slurm", "--recipe", "svg_captions_tiny", "--time", "10", code=3)
    assert "were not found on this machine" in error
    assert "--profile local" in error
    assert not list((tmp_path / "runs").glob("*"))
    assert "was not found" in call("status", "12345", code=3)


def test_a_taken_name_leaves_the_first_run_alone(call: Call, tmp_path: Path) -> None:
    taken = tmp_path / "runs" / "mine"
    taken.mkdir(parents=True)
    (taken / "precious").write_text("x")
    error = call(*TINY, "--name", "mine", code=2)
    assert "a run named 'mine' exists already" in error
    assert (taken / "precious").read_text() == "x"


def test_a_runs_folder_that_cannot_be_written_is_an_input_error(call: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = call(*TINY, "--runs-dir", str(tmp_path / "file" / "runs"), code=2)
    assert "cannot be created" in error


def test_a_broken_user_config_is_named(call: Call, own_folders: Path) -> None:
    folder = own_folders / "config"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("acounts: {leonardo: X}\n")
    error = call(*TINY, "--dry-run", code=2)
    assert "config.yaml:1: acounts: unknown field (did you mean 'accounts'? valid: accounts, runs_dir)" in error


def test_the_account_comes_from_option_environment_or_config(call: Call, own_folders: Path, tmp_path: Path) -> None:
    leonardo = ("submit", "--profile", "leonardo", "--recipe", "gemma2_9b_lora", "--dry-run")
    call(*leonardo, "--account", "A", code=0)
    call(*leonardo, code=0, HPCGEMMA_ACCOUNT="B")
    folder = own_folders / "config"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("accounts: {leonardo: C}\n")
    call(*leonardo, code=0)
    assert not (tmp_path / "runs").exists(), "a dry run leaves nothing behind"


def test_a_dry_run_tells_scripts_the_strategy_and_what_would_be_refused(tmp_path: Path, own_folders: Path) -> None:
    arguments = ("--profile", "leonardo", "--recipe", "gemma3_4b_cpt", "--account", "A", "--name", "r")
    done = subprocess.run(
        [sys.executable, "-m", "hpcgemma", "submit", *arguments, "--dry-run", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(done.stdout)
    assert done.stderr == ""
    assert list(said) == [
        *("name", "strategy", "strategy_reason", "continue_by", "continue_reason"),
        *("data", "warnings", "notes", "script"),
    ]
    assert (said["name"], said["strategy"]) == ("r", "ddp")
    assert "takes 28.9 GiB of a GPU's 63.4 GiB" in said["strategy_reason"]
    assert "data/train.jsonl finds no data file" in said["warnings"][0]["problem"]
    assert [each["hint"] for each in said["warnings"][1:]] == [
        "hf download google/gemma-3-4b-pt  (on the login node, with HF_HOME on a file system the nodes see)",
    ]
    assert [each["hint"] for each in said["notes"]] == ["--set training.trained_weights=fp32 where memory allows"]
    assert said["script"].startswith("#!/bin/bash\n")


def test_what_is_only_worth_knowing_is_said_and_not_refused(call: Call) -> None:
    settings = ("--set", "strategy.expected_world_size=8", "--set", "model.freeze.embeddings=true")
    error = call(*TINY, *settings, "--dry-run", code=0)
    assert error == (
        "Note:  strategy.expected_world_size is 8, and there are 2 processes: the global batch stays as it is, speed "
        "and memory per process will be others\n"
        "Try:   --set strategy.expected_world_size=2 where that is meant\n"
        "Note:  model.freeze.embeddings freezes the output head too: this gemma2 ties them\n"
        "Try:   --set model.freeze.head=true says the same in words\n"
        "strategy ddp: a gemma2 (354,528 parameters) with its gradients and AdamW states takes 4.8 MiB, which any "
        "machine has, so every process holds all of it and only gradients travel; ZeRO or FSDP would add communication "
        "and save memory that is not needed\n"
    )


def test_a_broken_index_hides_no_other_run(call: Call, own_folders: Path, tmp_path: Path) -> None:
    index = own_folders / "data" / "runs"
    index.mkdir(parents=True)
    (index / "a.json").write_text("{")
    (index / "b.json").write_text("[1]")
    (index / "c.json").write_text('{"run_id": "c", "name": null, "path": null, "profile": 1, "recipe": 1}')
    assert "no runs yet" in call("status", code=0)
    for word in ("~nobody-at-all", "x" * 300, "\u00e9"):
        assert "no run of hpcgemma is called" in call("status", word, code=2)


def test_a_folder_with_a_foreign_run_file_is_named_and_not_resumed(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    (folder / "submitit").mkdir(parents=True)
    (folder / "run.yaml").write_text("hello: world\n")
    assert "is not a run file" in call("resume", str(folder), code=1)
    (folder / "run.yaml").write_text("run_id: x\nplan: {}\nschema_version: 99\n")
    assert "was written by another version" in call("status", str(folder), code=1)


def test_a_runs_folder_with_an_unset_variable_is_refused(call: Call) -> None:
    error = call(*TINY, "--runs-dir", "$NOT_SET_ANYWHERE/runs", code=2)
    assert "names a variable that is not set here" in error


def test_every_bad_data_file_is_reported_at_once(call: Call, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"odd": 1}\n')
    (tmp_path / "b.jsonl").write_text("not json\n")
    (tmp_path / "c.jsonl").write_text('{"image": "x.png", "caption": "a cat"}\n')
    changes = ("--set", "data.generator=null", "--set", "data.format=auto", "--set", "data.train=./*.jsonl")
    error = call(*TINY, *changes, code=2)
    for said in ("a.jsonl: no format fits", "b.jsonl: none of the first", "c.jsonl: its rows show images"):
        assert said in error


VLM = ("submit", "--profile", "local", "--recipe", "gemma3_4b_vlm_tiny", "--set", "data.generator=null")


def test_images_for_a_model_that_sees_none_are_refused_before_the_queue(call: Call, tmp_path: Path) -> None:
    rows = [
        {"role": "user", "content": [{"type": "image", "path": "x.png"}]},
        {"role": "assistant", "content": "a cat"},
    ]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": rows}) + "\n")
    changes = ("--set", "data.format=auto", "--set", "data.train=rows.jsonl")
    assert "rows.jsonl: its rows show images, and model.kind text sees none" in call(
        *TINY, "--set", "data.generator=null", *changes, code=2
    )
    other = ("--set", "model.config={model_type: gemma4}")
    error = call(*VLM, *changes, *other, code=2)
    assert "which are trained on for Gemma 3 alone, and this model is a gemma4" in error


def test_rows_whose_images_are_not_there_are_refused_before_the_queue(call: Call, tmp_path: Path) -> None:
    row = {"image": "photos/1.jpg", "caption": "a cat"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    error = call(*VLM, "--set", "data.format=auto", "--set", "data.train=rows.jsonl", code=2)
    assert "1 of the first 1 rows cannot be trained on as image_caption; the first, line 1: its image" in error
    assert "photos/1.jpg is not there" in error
