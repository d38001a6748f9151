"""Ask a trained model. Started by ``hpcgemma generate``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from hpcgemma.errors import HpcGemmaError, InputError
from hpcgemma.recipes.types import DataSpec, TrainingSpec
from hpcgemma.train import generation
from hpcgemma.train.commands.place import take_place
from hpcgemma.train.commands.program import Request, note, run, show
from hpcgemma.train.commands.source import Source, load, source_of
from hpcgemma.train.generation import Prompt, Sampling, Speech, Typist
from hpcgemma.train.judged_rows import format_of, prompts_of, raw_prompts


def generate(request: Request) -> int:
    """Answer each text and print the answers in their order.

    Args:
        request: ``run`` or ``folder``, ``checkpoint``, ``texts``, ``images``, ``system``, ``raw``,
            ``source_lang``, ``target_lang``, ``max_new_tokens``, ``temperature``, ``top_p``, ``seed``, ``as_json``.
    """
    source = source_of(request)
    prompts = _prompts(source, request)
    training = source.recipe.training if source.recipe else TrainingSpec()
    ranks, device = take_place(training)
    model, prepared = load(source, device)
    if ranks.is_first:
        note(source.described)
        for sentence in model.notes:
            if sentence.startswith("quantization: none"):
                note(sentence)
    speech = Speech.of(source.tokenizer_dir, prepared)
    sampling = Sampling(
        max_new_tokens=request["max_new_tokens"], temperature=request["temperature"], top_p=request["top_p"]
    )
    torch.manual_seed(request["seed"])
    if ranks.world_size == 1 and not request["as_json"] and (len(prompts) == 1 or sys.stdout.isatty()):
        for prompt in prompts:
            with model.autocast():
                generation.answer(model, speech, [prompt], device, sampling, Typist(speech, _type))
            show("")
        return 0
    given = generation.answers(
        model,
        speech,
        prompts,
        ranks,
        device,
        sampling,
        micro_batch=training.eval_micro_batch,
        autocast=model.autocast,
        stop_is_agreed=lambda: False,
    )
    if given is None:
        raise HpcGemmaError("the generation was stopped", "start it again")
    if ranks.is_first and request["as_json"]:
        pairs = [{"prompt": text, "answer": answer} for text, answer in zip(request["texts"], given, strict=True)]
        show(json.dumps(pairs, indent=2, ensure_ascii=False))
    elif ranks.is_first:
        show("\n".join(given))
    ranks.leave()
    return 0


def _prompts(source: Source, request: Request) -> list[Prompt]:
    texts: list[str] = request["texts"]
    if request["raw"]:
        return raw_prompts(texts, source.turns)
    data = row_format = None
    if source.recipe is not None and source.prepared is not None:
        row_format = format_of(source.recipe.data, source.prepared)
        data = _with_languages(source.recipe.data, row_format, request)
    images = [Path(each) for each in request["images"]]
    return prompts_of(texts, source.turns, data, row_format, request["system"], images, source.tokenizer_dir)


def _with_languages(data: DataSpec, row_format: str, request: Request) -> DataSpec:
    given: dict[str, Any] = {
        name: request[option]
        for name, option in (("source", "source_lang"), ("target", "target_lang"))
        if request[option]
    }
    if given and row_format != "translation":
        raise InputError(
            f"the run was trained on {row_format}, which has no languages", "drop --source-lang, --target-lang"
        )
    return data.model_copy(update={"languages": data.languages.model_copy(update=given)})


def _type(text: str) -> None:
    show(text, end="")


if __name__ == "__main__":
    run(generate, libraries_talk=True)
