"""Answers that a model generates, and the file that their scores are kept in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpcgemma import files
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.data.images import RowImages
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.data.token_rows import TokenRows
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.strategies import Inference


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked, up to where the answer begins."""

    ids_T: NDArray[np.int32]
    images: RowImages | None = None
    """Where the images of the row lie that it is taken from; None: it shows none."""
    row: int = 0

    @classmethod
    def of(cls, rows: TokenRows, row: int) -> Prompt:
        """Return what a row asks: all of it but its last answer."""
        shown = rows.images if rows.images is not None and rows.images.of(row) else None
        return cls(rows.prompt(row), shown, row)

    @classmethod
    def whole(cls, rows: TokenRows, row: int) -> Prompt:
        """Return a row that holds nothing but what is asked."""
        return cls(rows.ids(row))

    def pixels(self) -> NDArray[np.float32] | None:
        """Return its images, of shape images x channels x height x width; None without any."""
        return None if self.images is None else self.images.images.pixels(self.images.of(self.row))


@dataclass(frozen=True, slots=True)
class Speech:
    """How token ids become an answer's text, and which of them end it."""

    tokenizer: Any
    """A tokenizer of transformers."""
    pad_id: int
    stop_ids: list[int]

    @classmethod
    def of(cls, tokenizer_dir: Path, prepared: PreparedData) -> Speech:
        """Return that of a tokenizer's folder."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(tokenizer_dir), local_files_only=True)
        return cls(tokenizer, prepared.special["pad"], prepared.stop_ids)

    def text(self, ids: Sequence[int]) -> str:
        """Return an answer's text."""
        # Not every tokenizer marks what ends its turns as special, and then would not skip it.
        kept = [number for number in ids if number not in self.stop_ids]
        text: str = self.tokenizer.decode(kept, skip_special_tokens=True)
        return text.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Tokens are drawn from the likeliest ones that have this probability together (Holtzman et al. 2020)."""

    @property
    def options(self) -> dict[str, Any]:
        """What transformers calls it."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False, "num_beams": 1}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": True,
            "num_beams": 1,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,
        }


@dataclass(slots=True)
class Typist:
    """Hands on an answer's text as it is generated; what transformers calls a streamer."""

    speech: Speech
    write: Callable[[str], object]
    _ids: list[int] = field(default_factory=list)
    _written: int = 0
    _is_prompt: bool = True

    def put(self, ids: torch.Tensor) -> None:
        """Take in tokens; the first time, those of the prompt."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self._ids += ids.flatten().tolist()
        text = self.speech.text(self._ids)
        if not text.endswith("\ufffd"):  # a letter whose bytes are not all there yet
            self._write(text)

    def end(self) -> None:
        """Write what is left."""
        self._write(self.speech.text(self._ids))

    def _write(self, text: str) -> None:
        self.write(text[self._written :])
        self._written = len(text)


def answers(
    strategy: Inference,
    speech: Speech,
    prompts: Sequence[Prompt],
    ranks: Ranks,
    device: torch.device,
    sampling: Sampling,
    *,
    micro_batch: int,
    autocast: Callable[[], AbstractContextManager[object]],
    stop_is_agreed: Callable[[], bool],
) -> list[str] | None:
    """Return answers to prompts, in their order, or None where a stop came first.

    Args:
        strategy: The model, spread over the ranks.
        speech: Its tokenizer.
        prompts: What is asked.
        ranks: All ranks; the prompts are spread over them.
        device: What this rank computes on.
        sampling: How many tokens, and how each is chosen.
        micro_batch: Prompts per rank that are answered at once.
        autocast: The precision's context.
        stop_is_agreed: Asked before each batch; all ranks get the same answer.
    """
    mine = list(range(len(prompts)))[ranks.rank :: ranks.world_size]
    # Where ranks gather weights together, all of them go through the vision tower, or none does.
    with_image = next((place for place, prompt in enumerate(prompts) if prompt.images is not None), None)
    most = -(-len(prompts) // ranks.world_size)
    found: dict[int, str] = {}
    strategy.model.eval()
    try:
        for start in range(0, most, micro_batch):
            if stop_is_agreed():
                return None
            chosen = mine[start : start + micro_batch]
            if not chosen and not strategy.moves_together:
                continue
            places = chosen or [0]
            if strategy.moves_together and with_image is not None and not _shows_image(prompts, places):
                places = [*places, with_image]
            asked = [prompts[place] for place in places]
            with autocast(), strategy.generating():
                texts = answer(strategy, speech, asked, device, sampling)
            found |= dict(zip(chosen, texts, strict=False))
    finally:
        strategy.model.train()
    together: dict[int, str] = {}
    for part in ranks.collect(found):
        together |= part
    return [together[place] for place in range(len(prompts))]


def _shows_image(prompts: Sequence[Prompt], places: Sequence[int]) -> bool:
    return any(prompts[place].images is not None for place in places)


def answer(
    strategy: Inference,
    speech: Speech,
    prompts: Sequence[Prompt],
    device: torch.device,
    sampling: Sampling,
    typist: Typist | None = None,
) -> list[str]:
    """Answer prompts at once, padded on the left so that all answers begin at the same place.

    Args:
        strategy: The model; inside its ``generating`` context.
        speech: Its tokenizer.
        prompts: What is asked.
        device: What this rank computes on.
        sampling: How many tokens, and how each is chosen.
        typist: Told of the tokens of a single prompt as they come.
    """
    width = max(len(prompt.ids_T) for prompt in prompts)
    ids_BT = np.full((len(prompts), width), speech.pad_id, np.int64)
    mask_BT = np.zeros((len(prompts), width), np.int64)
    for place, prompt in enumerate(prompts):
        ids_BT[place, width - len(prompt.ids_T) :] = prompt.ids_T
        mask_BT[place, width - len(prompt.ids_T) :] = 1
    shown = _shown(prompts, ids_BT)
    generate: Any = strategy.model.generate
    with torch.no_grad():
        output_BT = generate(
            input_ids=torch.from_numpy(ids_BT).to(device),
            attention_mask=torch.from_numpy(mask_BT).to(device),
            use_cache=True,
            synced_gpus=strategy.moves_together,  # all go on until the last one has its answer
            pad_token_id=speech.pad_id,
            eos_token_id=speech.stop_ids,
            streamer=typist,
            **{name: torch.from_numpy(each).to(device) for name, each in shown.items()},
            **sampling.options,
        )
    return [speech.text(ids) for ids in output_BT[:, width:].tolist()]


def _shown(prompts: Sequence[Prompt], ids_BT: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return what a vision model asks of images, by its own names; nothing where there are none."""
    pixels = [found for prompt in prompts if (found := prompt.pixels()) is not None]
    soft_token = next((prompt.images.images.soft_token for prompt in prompts if prompt.images is not None), None)
    if soft_token is None:
        return {}
    return {
        "pixel_values": np.concatenate(pixels),
        "token_type_ids": (ids_BT == soft_token).astype(np.int64),
    }


def read_scores(folder: RunFolder) -> dict[str, Any]:
    """Return the scores written so far."""
    try:
        scores: dict[str, Any] = json.loads(folder.evaluation_file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return scores


def write_scores(folder: RunFolder, when: str, scores: Mapping[str, Any]) -> None:
    """Add scores to the evaluation file, under ``untrained``, ``step-N`` or ``trained``."""
    content = read_scores(folder) | {when: dict(scores)}
    files.write_atomically(folder.evaluation_file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
