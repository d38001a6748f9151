"""Judge a trained model: held-out loss, generated answers, targets. Started by ``hpcgemma evaluate``."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcgemma import files
from hpcgemma.errors import HpcGemmaError
from hpcgemma.recipes.metrics import METRICS
from hpcgemma.recipes.types import DataSpec, EvaluationSpec, GenerationSpec, Recipe, TrainingSpec
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train import generation
from hpcgemma.train.commands.place import take_place
from hpcgemma.train.commands.program import Request, note, run, show
from hpcgemma.train.commands.source import Source, load, source_of
from hpcgemma.train.data.samples import learned_tokens
from hpcgemma.train.evaluation import held_out_loss
from hpcgemma.train.judged_rows import JudgedRows, held_out_rows, rows_to_judge
from hpcgemma.train.scoring import perplexity, score
from hpcgemma.train.scoring.targets import judge, sentence_of


def evaluate(request: Request) -> int:
    """Evaluate, print what was found, and write it beside the run.

    Args:
        request: ``run`` or ``folder``, ``checkpoint``, ``data``, ``rows``, ``max_new_tokens``, ``generation``,
            ``clip_model``, ``as_json``.
    """
    source = source_of(request)
    training = source.recipe.training if source.recipe else TrainingSpec()
    ranks, device = take_place(training)
    rows = _rows(source, request)
    spec = _evaluation_spec(source.recipe, request, asks=any(asked for asked, _ in rows.questions))
    model, prepared = load(source, device)
    if ranks.is_first:
        note(f"{source.described}, {len(rows.rows)} rows of {rows.name}")
    began = time.monotonic()
    loss = held_out_loss(
        model,
        replace(prepared, eval=rows.rows),
        ranks,
        device,
        micro_batch=training.eval_micro_batch,
        stop_is_agreed=lambda: False,
        limit=request["rows"],
    )
    if loss is None:
        raise HpcGemmaError("the evaluation was stopped", "start it again")
    count = len(rows.rows) if request["rows"] is None else min(request["rows"], len(rows.rows))
    result: dict[str, Any] = {
        "model": source.described,
        "data": rows.name,
        "rows": count,
        "left_out": rows.left_out,
        "tokens": int(learned_tokens(rows.rows)[:count].sum()),
        "eval_loss": loss,
        "perplexity": perplexity(loss),
    }
    if spec.generation is not None:
        answered = min(spec.generation.rows, count)
        given = generation.answers(
            model,
            generation.Speech.of(source.tokenizer_dir, prepared),
            [generation.Prompt.of(rows.rows, row) for row in range(answered)],
            ranks,
            device,
            generation.Sampling(max_new_tokens=spec.generation.max_new_tokens),
            micro_batch=training.eval_micro_batch,
            autocast=model.autocast,
            stop_is_agreed=lambda: False,
        )
        if ranks.is_first and given is not None:
            asked = rows.questions[:answered]
            scores = score(given, [true for _, true in asked], [prompt for prompt, _ in asked], spec, device)
            result |= {"answers": scores.pop("rows"), **scores}
    if ranks.is_first:
        result |= {"targets": judge(spec.targets, result), "seconds": round(time.monotonic() - began, 2)}
        result |= {"written": _write(source, request, result)}
        _show(result, as_json=request["as_json"])
    ranks.leave()
    return 0


def _evaluation_spec(recipe: Recipe | None, request: Request, *, asks: bool) -> EvaluationSpec:
    """Return what is measured: as the recipe says, changed by the command. Rows of plain text ask nothing."""
    spec = recipe.evaluation if recipe else EvaluationSpec()
    changes: dict[str, Any] = {}
    if request["clip_model"]:
        changes["clip_model"] = request["clip_model"]
    if not request["generation"] or not asks:
        changes["generation"] = None
    else:
        asked = spec.generation or GenerationSpec()
        if request["max_new_tokens"]:
            asked = asked.model_copy(update={"max_new_tokens": request["max_new_tokens"]})
        changes["generation"] = asked
    return spec.model_copy(update=changes)


def _rows(source: Source, request: Request) -> JudgedRows:
    if request["data"] is None and source.prepared is not None:
        return held_out_rows(source.prepared)
    data = source.recipe.data if source.recipe else DataSpec()
    return rows_to_judge(str(request["data"]), data, source.turns, source.tokenizer_dir, request["rows"])


def _write(source: Source, request: Request, result: dict[str, Any]) -> str | None:
    """Write the result into the run's ``evaluations/``; a folder that is no run's stays as it is."""
    if source.run is None:
        return None
    stem = time.strftime("%Y%m%d-%H%M%S") + f"-{request['checkpoint']}"
    path = _free(RunFolder(source.run.path).path / "evaluations", stem)
    path.parent.mkdir(exist_ok=True)
    files.write_atomically(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    return str(path)


def _free(folder: Path, stem: str) -> Path:
    names = [stem, *(f"{stem}-{count}" for count in range(2, 1000))]
    return next(path for name in names if not (path := folder / f"{name}.json").exists())


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show(json.dumps(result, indent=2, ensure_ascii=False))
        return
    facts = [
        ("model", result["model"]),
        ("data", result["data"]),
        ("rows", f"{result['rows']:,}" + (f" ({result['left_out']} left out)" if result["left_out"] else "")),
        ("tokens", f"{result['tokens']:,} learned"),
        ("answers", str(result.get("answers", ""))),
        *(
            (name, f"{result[name]:.4f}" if name == "eval_loss" else f"{result[name]:.2f}")
            for name in METRICS
            if name in result
        ),
        *((f"  {name}", f"{value:.2f}") for name, value in result.get("instruction_checks", {}).items()),
        *(("target", sentence_of(name, verdict)) for name, verdict in result["targets"].items()),
        *(("note", each) for each in result.get("notes", [])),
        ("examples", result["written"] or ""),
    ]
    shown = [(name, value) for name, value in facts if value]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        show(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    run(evaluate, libraries_talk=True)
