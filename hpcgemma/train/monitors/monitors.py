"""The monitors of one rank: when they measure, on which rows, and what they say of it.

They look on while the model computes the loss of a few held-out rows, without gradients and between two steps. Nothing
that a step depends on is touched: no weight, no gradient, no random number. So a training has the same losses and
weights, bit for bit, with them and without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from hpcgemma import files
from hpcgemma.recipes.types import MonitorsSpec, Recipe
from hpcgemma.runs.folder import RunFolder
from hpcgemma.train.anatomy import bare_model, decoder_of
from hpcgemma.train.data.batches import collate
from hpcgemma.train.data.prepared import PreparedData
from hpcgemma.train.metrics import say
from hpcgemma.train.monitors.attention import WatchedAttention, watched
from hpcgemma.train.monitors.logits import WatchedLogits
from hpcgemma.train.monitors.reading import Reading, read_layers, read_logits
from hpcgemma.train.monitors.signs import signs_of_trouble
from hpcgemma.train.ranks import Ranks
from hpcgemma.train.strategies import Strategy

_TOLERANCE_FP32 = 1e-3
_TOLERANCE_BF16 = 1e-1
"""How far hidden states may be from those of the model's own attention, as a share of their norm. Rounding stays well
below, another attention well above. The loss would not do: that of an untrained model hardly depends on attention."""


class Monitors:
    """What measures a model.

    Args:
        recipe: What is trained; where its ``monitors`` is null, nothing is ever due.
        folder: The run folder; monitors.jsonl is there.
        strategy: The model, spread over the ranks.
        prepared: The held-out rows.
        ranks: All ranks; they do all of this together.
        device: What this rank computes on.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        strategy: Strategy,
        prepared: PreparedData,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self._is_on, self._spec = recipe.monitors is not None, recipe.monitors or MonitorsSpec()
        self._folder, self._strategy, self._prepared = folder, strategy, prepared
        self._ranks, self._device = ranks, device
        self._is_compiled = recipe.training.compile
        self._tolerance = _TOLERANCE_BF16 if recipe.training.precision == "bf16" else _TOLERANCE_FP32
        self._first: Reading | None = None
        self._measured: set[int] = set()
        self._is_checked, self._obstacle = False, False

    def resume(self, step: int) -> None:
        """Take up what earlier attempts measured up to this step; later ones are measured again."""
        if not self._is_on:
            return
        earlier: list[dict[str, Any]] = []
        if self._ranks.is_first:
            lines = files.read_json_lines(self._folder.monitors_file)
            earlier = [line for line in lines if line["step"] <= step]
            self._first = Reading.of_line(earlier[0]) if earlier else None
            spec = self._spec
            what = ", ".join(name.replace("_", " ") for name in spec.measure)
            count = min(spec.rows, len(self._prepared.eval))
            say(f"monitors: {what}; every {spec.every_steps} steps on the first {count} held-out rows")
        self._measured = self._ranks.from_first({line["step"] for line in earlier})

    def are_due(self, step: int, *, is_last: bool) -> bool:
        """Return whether this step is to be measured: the first, the last, and every so many between."""
        if not self._is_on or self._obstacle or step in self._measured:
            return False
        return is_last or step % self._spec.every_steps == 0

    def measure(self, step: int, stop_is_agreed: Callable[[], bool]) -> Reading | None:
        """Measure the model and say what is found; None where a stop came first, or it cannot be measured.

        Args:
            step: Optimizer steps taken so far.
            stop_is_agreed: Asked before each forward pass; all ranks get the same answer.
        """
        began = time.monotonic()
        rows = self._prepared.eval
        count = min(self._spec.rows, len(rows))
        lengths = [int(length) for length in rows.lengths_N[:count]]
        attention, logits = WatchedAttention(max(lengths)), WatchedLogits(self._device)
        mine = range(self._ranks.rank, count, self._ranks.world_size)
        for place in range(-(-count // self._ranks.world_size)):
            if stop_is_agreed():
                return None
            counts = place < len(mine)
            # A rank whose rows are used up goes through one with the others, who may need it, but counts nothing.
            self._look_at(mine[place] if counts else 0, attention, logits, counts=counts)
            if self._obstacle:
                return None
        tensors = [each for layer in attention.layers for each in layer.tensors()] + [logits.counts_5]
        for tensor, summed in zip(tensors, self._summed(tensors), strict=True):
            tensor.copy_(summed)
        reading = Reading(
            step=step,
            measure=list(self._spec.measure),
            rows=count,
            tokens=sum(lengths),
            seconds=round(time.monotonic() - began, 3),
            layers=read_layers(attention.layers),
            logits=read_logits(logits.counts_5),
        )
        self._measured.add(step)
        if self._ranks.is_first:
            self._tell(reading)
        return reading

    def _look_at(self, row: int, attention: WatchedAttention, logits: WatchedLogits, *, counts: bool) -> None:
        """Take one row through the model and watch."""
        rows = self._prepared.eval
        batch = collate(rows, np.asarray([row]), self._prepared.special["pad"])
        batch = self._strategy.shaped(batch).to(self._device)
        attention.begin(int(rows.lengths_N[row]) if counts else 0)
        logits.begin(batch.positions_N if counts else batch.positions_N[:0])
        model = self._strategy.model
        on_logits = logits.of(model) if "softcap_saturation" in self._spec.measure else nullcontext()
        model.eval()
        try:
            with torch.no_grad():
                with self._uncompiled(), watched(model, attention), on_logits, _hidden_states(model) as seen:
                    self._strategy.evaluated(*batch)
                if not self._is_checked:
                    with _hidden_states(model) as own:
                        self._strategy.evaluated(*batch)
                    self._check(seen[0], own[0], len(attention.layers))
        finally:
            model.train()

    def _check(self, seen_BTD: torch.Tensor, own_BTD: torch.Tensor, layers: int) -> None:
        """Compare what comes of the watched attention with what comes of the model's own; all ranks say the same."""
        norm = float(own_BTD.float().norm())
        difference = float((seen_BTD.float() - own_BTD.float()).norm()) / max(norm, 1e-30)
        self._is_checked = True
        self._obstacle = bool(self._ranks.highest(int(difference > self._tolerance or not layers)))
        if self._obstacle and self._ranks.is_first:
            name = type(bare_model(self._strategy.model)).__name__
            reason = (
                f"{name} computes its attention without transformers' attention functions"
                if not layers
                else f"{name}'s attention is more than is known here: with it hidden states differ by {difference:.1%}"
            )
            say(f"monitors: nothing is measured, since {reason}")

    def _summed(self, tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield tensors summed over all ranks."""
        flat = torch.cat([tensor.flatten().cpu() for tensor in tensors])
        whole = torch.tensor(self._ranks.sums(flat.tolist()), dtype=torch.float64)
        for part, tensor in zip(torch.split(whole, [each.numel() for each in tensors]), tensors, strict=True):
            yield part.view(tensor.shape)

    def _tell(self, reading: Reading) -> None:
        """Keep a reading in the run folder, and say what is wrong with it."""
        if self._first is None:
            self._first = reading
            for note in self._notes(reading):
                say(f"monitors: {note}")
        signs = signs_of_trouble(reading, self._first)
        for sign in signs:
            say(f"WARNING: monitors, step {reading.step}: {sign}")
        try:
            files.append_json_line(self._folder.monitors_file, reading.line() | {"signs": signs, "time": time.time()})
        except OSError as error:
            say(f"WARNING: the monitors of step {reading.step} could not be written: {error}")

    def _notes(self, reading: Reading) -> Iterator[str]:
        """Yield sentences on monitors that this model, or these rows, have no use for."""
        name = bare_model(self._strategy.model).config.get_text_config().model_type
        layers = reading.layers
        if "softcap_saturation" in self._spec.measure:
            uncapped = ["attention scores"] * all(layer.softcap_saturated is None for layer in layers)
            uncapped += ["logits"] * (reading.logits is None)
            if uncapped:
                yield f"{name} has no softcap on its {' or '.join(uncapped)}, so no saturation is measured there"
        if "sliding_window" in self._spec.measure:
            windows = [layer.window for layer in layers if layer.window is not None]
            longest = int(self._prepared.eval.lengths_N[: reading.rows].max())
            if not windows:
                yield f"{name} has no layer with a sliding window, so only attention on the first token is measured"
            elif longest <= min(windows):
                yield (
                    f"none of the {reading.rows} rows is longer than the sliding window of {min(windows):,} tokens "
                    f"(the longest has {longest:,}): it hides nothing, and sliding layers see what full ones see"
                )

    @contextmanager
    def _uncompiled(self) -> Iterator[None]:
        """Leave torch.compile out: it would compile the watched attention too, and count it among its versions."""
        if not self._is_compiled:
            yield
            return
        stance: Any = torch.compiler.set_stance
        with stance("force_eager"):
            yield


@contextmanager
def _hidden_states(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collect what the head reads in each forward pass, B x T x D."""
    seen: list[torch.Tensor] = []
    handle = decoder_of(model).register_forward_hook(lambda _module, _inputs, out: seen.append(out.last_hidden_state))
    try:
        yield seen
    finally:
        handle.remove()
