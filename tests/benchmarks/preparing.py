"""What preparing data costs: tokens a second on one core and on two, memory, and how full packs get; beside TRL.

Run it with `python -m tests.benchmarks.preparing [FILE.jsonl]`, after `pip install trl datasets` if TRL is to run too;
the tables go into docs/benchmarks.md. Each run is a process of its own, bound to its cores; all take the same file and
tokenizer. Without a file, drawings with captions are made. Times are those of one machine at one moment: compare them
only within one run.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

MAX_LENGTH = 1024


def write_drawings(path: Path, count: int) -> Path:
    """Write drawings with their captions as prompts and completions, some short and some long."""
    from hpcgemma.train.data.svg_captions import draw_rows

    drawings, _ = draw_rows(count, 1, 0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            chosen = drawings[number : number + 1 + number % 7]
            row = {
                "prompt": "\n".join(drawing.svg for drawing in chosen),
                "completion": "\n".join(f"{number}: {drawing.caption}" for drawing in chosen),
            }
            file.write(json.dumps(row) + "\n")
    return path


def our_run(file: Path, tokenizer: Path, scratch: Path) -> dict[str, Any]:
    """Prepare and pack a file with hpcgemma, as a run would."""
    from hpcgemma.runs.folder import RunFolder
    from hpcgemma.train.data.prepared import PreparedData
    from hpcgemma.train.prepare import prepare

    folder = RunFolder(scratch / "runs" / "run")
    folder.path.mkdir(parents=True)
    recipe = {
        "name": "benchmark",
        "description": "Only prepared",
        "model": {"config": {"model_type": "gemma3_text"}},
        "tokenizer": {"path": str(tokenizer)},
        "data": {"train": str(file), "max_length": MAX_LENGTH, "packing": True, "max_bad_share": 1.0},
    }
    folder.run_file.write_text(yaml.safe_dump({"run_id": "benchmark", "recipe": recipe}), encoding="utf-8")
    began = time.monotonic()
    summary = prepare(folder)
    seconds, mib = time.monotonic() - began, peak_mib()
    samples = PreparedData.open(folder.prepared_dir).samples
    tokens = summary["train"]["tokens"] + summary["eval"]["tokens"]
    density = summary["train"]["tokens"] / (len(samples) * MAX_LENGTH)
    return {"tokens": tokens, "seconds": seconds, "packs": len(samples), "density": density, "mib": mib}


def trl_run(file: Path, tokenizer_dir: Path, scratch: Path) -> dict[str, Any]:
    """Tokenize and pack the same with datasets and TRL, as SFTTrainer does."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    pack_dataset: Any = importlib.import_module("trl").pack_dataset

    tokenizer: Any = AutoTokenizer.from_pretrained(str(tokenizer_dir), local_files_only=True)

    def tokenized(row: dict[str, str]) -> dict[str, list[int]]:
        messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        return {"input_ids": tokenizer.apply_chat_template(messages, return_dict=False)}

    began = time.monotonic()
    cores = len(os.sched_getaffinity(0))
    rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(scratch / "cache"))
    rows = rows.map(tokenized, remove_columns=rows.column_names, num_proc=cores if cores > 1 else None)
    rows = rows.filter(lambda row: len(row["input_ids"]) <= MAX_LENGTH)
    tokens = sum(map(len, rows["input_ids"]))
    packed = pack_dataset(rows, MAX_LENGTH, "bfd")
    seconds = time.monotonic() - began
    return {
        "tokens": tokens,
        "seconds": seconds,
        "packs": len(packed),
        "mib": peak_mib(),
        "density": tokens / (len(packed) * MAX_LENGTH),
    }


def measure(what: str, file: Path, tokenizer: Path, cores: int) -> dict[str, Any]:
    """Run one of both in a process of its own and return what it found, with the peak of its memory."""
    with tempfile.TemporaryDirectory() as scratch:
        argv = [sys.executable, "-m", "tests.benchmarks.preparing", str(file), "--run", what]
        argv += ["--tokenizer", str(tokenizer), "--cores", str(cores), "--scratch", scratch]
        done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_mib() -> float:
    """Return the largest memory that this process has had, in MiB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the tables, or run one of their lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=20_000, help="rows to draw where no file is given")
    parser.add_argument("--run", choices=("hpcgemma", "trl"))
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--cores", type=int)
    parser.add_argument("--scratch", type=Path)
    given = parser.parse_args()
    if given.run is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
        run = our_run if given.run == "hpcgemma" else trl_run
        print(json.dumps(run(given.file, given.tokenizer, given.scratch)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        file = given.file or write_drawings(Path(scratch) / "drawings.jsonl", given.rows)
        tokenizer = make_tokenizer(file, Path(scratch) / "tokenizer")
        kinds = ["hpcgemma", *(["trl"] if importlib.util.find_spec("trl") else [])]
        print("| | cores | tokens | seconds | tokens/s | packs | density |\n|---|---|---|---|---|---|---|")
        for kind in kinds:
            for cores in (1, 2):
                found = measure(kind, file, tokenizer, cores)
                print(
                    f"| {kind} | {cores} | {found['tokens']:,} | {found['seconds']:.1f} | "
                    f"{found['tokens'] / found['seconds']:,.0f} | {found['packs']:,} | {found['density']:.4f} |",
                    flush=True,
                )
        tenfold = Path(scratch) / "tenfold.jsonl"
        with tenfold.open("w", encoding="utf-8") as out:
            for copy in range(10):
                for line in file.read_text(encoding="utf-8").splitlines():
                    row = json.loads(line)
                    first = next(name for name, value in row.items() if isinstance(value, str))
                    out.write(json.dumps(row | {first: f"{copy} {row[first]}"}) + "\n")
        print("\n| file | peak of the preparing process |\n|---|---|")
        for path in (file, tenfold):
            found = measure("hpcgemma", path, tokenizer, 2)
            size = path.stat().st_size / 2**20
            print(f"| {size:.0f} MiB | {found['mib']:.0f} MiB |", flush=True)


def make_tokenizer(file: Path, folder: Path) -> Path:
    """Train a tokenizer on the first rows of a file."""
    from itertools import islice

    from hpcgemma.recipes.types import Recipe
    from hpcgemma.train.data.sources import open_sources
    from hpcgemma.train.data.tokenizer import train_tokenizer

    recipe = Recipe.model_validate(
        {"name": "benchmark", "description": "", "model": {}, "data": {"train": str(file), "max_length": MAX_LENGTH}}
    )
    train_tokenizer(islice(open_sources(recipe).training_contents(), 2000), 4096, folder)
    return folder


if __name__ == "__main__":
    main()
