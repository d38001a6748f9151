"""Write a run's model as a folder of its own. Started by ``hpcgemma export``."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hpcgemma import __version__, files
from hpcgemma.errors import InputError
from hpcgemma.recipes.types import Recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train import exporting, generation
from hpcgemma.train.commands.place import take_place
from hpcgemma.train.commands.program import Request, note, run, show
from hpcgemma.train.commands.source import Source, load, source_of
from hpcgemma.train.model_card import CardFacts, model_card

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def export(request: Request) -> int:
    """Write the folder, load it again, compare, and only then give it its name.

    Args:
        request: ``run``, ``checkpoint``, ``to``, ``merge`` (true, false or null for merged), ``dtype``, ``force``,
            ``as_json``.
    """
    source = source_of(request)
    recipe, folder = source.recipe, source.run
    if recipe is None or folder is None or source.prepared is None:
        raise InputError(f"{source.described} is no run", "hpcgemma status  lists all runs")
    merged = request["merge"] is not False
    if not merged and recipe.lora is None:
        raise InputError(f"{source.described} has no adapters: all its weights were trained", "drop --adapter")
    target = Path(request["to"]) if request["to"] else folder.path / ("export" if merged else "export-adapter")
    dtype = _DTYPES[request["dtype"] or ("bf16" if recipe.training.precision == "bf16" else "fp32")]
    ranks, device = take_place(recipe.training)
    if ranks.world_size > 1:
        raise InputError(f"{ranks.world_size} processes were started, and one exports", "drop srun, or give it -n 1")
    notes = []
    if merged and recipe.model.quantization is not None:
        notes.append(
            "the adapters were trained beside a base in 4 bits, and are merged into the whole base: answers may differ "
            "a little from those of the run"
        )
        source = _with_whole_base(source, recipe)
    with exporting.staged(target, replace=request["force"]) as staging:
        model, prepared = load(source, device)
        expected = exporting.logits_of(model)
        config = getattr(model.model, "config", None)
        shutil.copytree(prepared.tokenizer_dir, staging, dirs_exist_ok=True)
        if merged:
            exporting.write_merged(model, staging, dtype)
        else:
            exporting.write_adapters(model, staging, dtype)
            model.model.generation_config.save_pretrained(str(staging))
        difference = exporting.check_reload(staging, model, expected, dtype, merged=merged)
        card = model_card(_facts(source, recipe, folder, str(getattr(config, "model_type", "")), merged=merged))
        (staging / "README.md").write_text(card, encoding="utf-8")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    result: dict[str, Any] = {
        "folder": str(target),
        "model": source.described,
        "kind": "merged" if merged else "adapter",
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": size,
        "max_logit_difference": difference,
        "notes": notes,
    }
    if request["as_json"]:
        show(json.dumps(result, indent=2, ensure_ascii=False))
        return 0
    for sentence in notes:
        note(sentence)
    show(f"{source.described}: written to {target}, {size / 2**20:,.1f} MiB in {result['dtype']}")
    show(f"loaded again, its logits differ by at most {difference:.3g}")
    return 0


def _with_whole_base(source: Source, recipe: Recipe) -> Source:
    model = recipe.model.model_copy(update={"quantization": None})
    return replace(source, recipe=recipe.model_copy(update={"model": model}))


def _facts(source: Source, recipe: Recipe, folder: RunFolder, model_type: str, *, merged: bool) -> CardFacts:
    is_final = source.checkpoint is None
    scores = generation.read_scores(folder).get("trained", {}) if is_final else {}
    return CardFacts(
        name=folder.path.name,
        recipe=recipe,
        model_type=model_type,
        has_whole_model=merged,
        checkpoint="the finished model" if is_final else f"the checkpoint at step {source.checkpoint}",
        data=source.prepared.summary if source.prepared else {},
        scores=scores,
        losses=_last_losses(folder, source.checkpoint),
        versions={"hpcgemma": __version__}
        | {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
    )


def _last_losses(folder: RunFolder, step: int | None) -> dict[str, float]:
    """Return the last losses of the training, up to a step."""
    found: dict[str, float] = {}
    names: dict[str, Any] = {"loss": "training loss, last step", "eval_loss": "held-out loss, last evaluation"}
    for line in files.read_json_lines(folder.metrics_file):
        if step is None or line.get("step", 0) <= step:
            found |= {name: float(line[key]) for key, name in names.items() if key in line}
    return found


if __name__ == "__main__":
    run(export, libraries_talk=True)
