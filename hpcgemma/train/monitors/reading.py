"""What the monitors read off a model at one step: numbers made of sums. Pure.

Letters: H heads, T distances in tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hpcgemma.train.monitors.attention import LayerSums

COLLAPSED_NATS = 0.1
"""A head whose mean entropy is below this has collapsed: it looks at e^0.1 = 1.1 keys, whatever it is asked."""

SHARES = (0.5, 0.9, 0.99)
"""Shares of the attention whose distances are told."""

PREFIX = "monitors/"
"""Of the names in metrics.jsonl and TensorBoard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReading:
    """One layer of attention, over all queries that were measured."""

    window: int | None
    """Keys that a query sees at most; None: all before it."""
    entropy_nats: list[float]
    """Mean entropy of each head."""
    entropy_relative: float
    """Entropy as a share of ln(keys seen), the most that is possible; mean over heads and queries."""
    collapsed: int
    """Heads with a mean entropy below 0.1 nats."""
    softcap_saturated: float | None
    """Share of the scores that are larger than the softcap before it is applied; None without one."""
    softcap_used: float | None
    """Mean of |score| / softcap after it is applied."""
    truncated: float
    """Share of the queries from which the window hides a key."""
    first_token: float
    """Share of the attention on the row's first token; it is left out of what follows."""
    beyond_half: float | None
    """Share of the attention on keys farther away than half the window; None for a layer that sees all."""
    beyond_window: float | None
    """Share on keys that the model's sliding layers do not see; None for a sliding layer, or without any."""
    distances: list[int]
    """Tokens within which 50, 90 and 99 % of the attention lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitReading:
    """Logits before the output head's softcap, at learned positions."""

    saturated: float
    """Share of the logits that are larger than the cap."""
    used: float
    """Mean of |logit| / cap after it is applied."""
    top_saturated: float
    """Share of the positions whose largest logit is larger than the cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All that was measured at one step."""

    step: int
    measure: list[str]
    """The monitors that were asked for."""
    rows: int
    tokens: int
    seconds: float
    """What the measurement took."""
    layers: list[LayerReading]
    logits: LogitReading | None
    """None where they are not capped, or not asked for."""

    def numbers(self) -> dict[str, float]:
        """Return what goes into metrics.jsonl: means over layers, by name, of the monitors that are asked for."""
        layers, measure = self.layers, self.measure
        found: dict[str, float | None] = {}
        if "attention_entropy" in measure:
            found |= {
                "attention_entropy": _mean(_mean(layer.entropy_nats) for layer in layers),
                "attention_entropy_relative": _mean(layer.entropy_relative for layer in layers),
                "collapsed_heads": sum(layer.collapsed for layer in layers),
            }
        if "softcap_saturation" in measure:
            found |= {
                "attention_softcap_saturated": _mean(layer.softcap_saturated for layer in layers),
                "attention_softcap_used": _mean(layer.softcap_used for layer in layers),
            }
            if self.logits is not None:
                found |= {
                    "final_softcap_saturated": self.logits.saturated,
                    "final_softcap_used": self.logits.used,
                    "final_softcap_top_saturated": self.logits.top_saturated,
                }
        if "sliding_window" in measure:
            sliding = [layer for layer in layers if layer.window is not None]
            found |= {
                "window_truncated": _mean(layer.truncated for layer in sliding),
                "window_beyond_half": _mean(layer.beyond_half for layer in sliding),
                "full_beyond_window": _mean(layer.beyond_window for layer in layers),
                "first_token": _mean(layer.first_token for layer in layers),
            }
        present = {f"{PREFIX}{name}": _rounded(value) for name, value in found.items() if value is not None}
        return present | {f"{PREFIX}seconds": self.seconds}

    def summary(self) -> str:
        """Return the numbers in a line of words."""
        numbers = {name.removeprefix(PREFIX): value for name, value in self.numbers().items()}
        parts = []
        if "attention_entropy" in numbers:
            parts.append(
                f"attention entropy {numbers['attention_entropy']:.2f} nats, "
                f"{numbers['attention_entropy_relative']:.0%} of its most; "
                f"{numbers['collapsed_heads']:.0f} of {self.heads} heads collapsed"
            )
        for name, what in (("attention_softcap", "attention"), ("final_softcap", "final")):
            if f"{name}_saturated" in numbers:
                parts.append(
                    f"{what} softcap {numbers[f'{name}_saturated']:.2%} saturated, {numbers[f'{name}_used']:.0%} used"
                )
        if "window_truncated" in numbers:
            parts.append(
                f"window hides keys from {numbers['window_truncated']:.0%} of queries; its farther half has "
                f"{numbers['window_beyond_half']:.1%} of the attention"
            )
        if "full_beyond_window" in numbers:
            parts.append(f"beyond it {numbers['full_beyond_window']:.1%} of that of full layers")
        return " | ".join([*parts, f"measured in {self.seconds:.2f} s"])

    @property
    def heads(self) -> int:
        """Heads of all layers."""
        return sum(len(layer.entropy_nats) for layer in self.layers)

    def line(self) -> dict[str, Any]:
        """Return the line of monitors.jsonl."""
        return asdict(self)

    @classmethod
    def of_line(cls, line: dict[str, Any]) -> Reading:
        """Return what a line of monitors.jsonl says."""
        logits = None if line["logits"] is None else LogitReading(**line["logits"])
        layers = [LayerReading(**layer) for layer in line["layers"]]
        rest = {name: line[name] for name in ("step", "measure", "rows", "tokens", "seconds")}
        return cls(**rest, layers=layers, logits=logits)


def read_layers(sums: Sequence[LayerSums]) -> list[LayerReading]:
    """Return what the sums of all layers say."""
    windows = [layer.window for layer in sums if layer.window is not None]
    return [_read_layer(layer, min(windows, default=None)) for layer in sums]


def read_logits(counts_5: torch.Tensor) -> LogitReading | None:
    """Return what the sums of ``WatchedLogits`` say; None where nothing was capped."""
    logits, saturated, used, tokens, top = (float(count) for count in counts_5)
    if not logits:
        return None
    return LogitReading(
        saturated=_rounded(saturated / logits),
        used=_rounded(used / logits),
        top_saturated=_rounded(top / tokens),
    )


def _read_layer(sums: LayerSums, narrowest: int | None) -> LayerReading:
    """Return what the sums of a layer say.

    Args:
        sums: The layer's.
        narrowest: The window of the model's sliding layers; None without any.
    """
    queries, choosing, hidden, scores, saturated, used = (float(count) for count in sums.counts_6)
    entropy_H = sums.entropy_H / max(queries, 1)
    share_T = (sums.distance_T / max(queries, 1)).cpu()
    within_T = share_T.cumsum(0)

    def beyond(distance: int) -> float:
        return _rounded(float(share_T[distance:].sum()))

    return LayerReading(
        window=sums.window,
        entropy_nats=[_rounded(float(each)) for each in entropy_H],
        entropy_relative=_rounded(float(sums.relative_H.mean()) / max(choosing, 1)),
        collapsed=int((entropy_H < COLLAPSED_NATS).sum()),
        softcap_saturated=None if sums.softcap is None else _rounded(saturated / max(scores, 1)),
        softcap_used=None if sums.softcap is None else _rounded(used / max(scores, 1)),
        truncated=_rounded(hidden / max(queries, 1)),
        first_token=_rounded(float(sums.first) / max(queries, 1)),
        beyond_half=None if sums.window is None else beyond(sums.window // 2 + 1),
        beyond_window=None if sums.window is not None or narrowest is None else beyond(narrowest),
        distances=[int((within_T < share * within_T[-1]).sum()) for share in SHARES],
    )


def _mean(values: Iterable[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else None


def _rounded(value: float) -> float:
    """Return seven digits, which is what fp32 has."""
    return float(f"{value:.7g}")
