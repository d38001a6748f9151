"""Attention that adds up what it sees: entropy, what the softcap does, and how far tokens look.

No fast kernel gives its probabilities away, so for the measured pass the model computes its attention here, through
transformers' own registry of attention functions: what a model does to queries and keys (rotation, norms) is done by
then, and masks are those of transformers. It is the attention of the paper, in fp32, over some queries at a time, so
that no matrix of all queries and all keys is ever held. What comes out goes on through the model; that it is the
attention which is trained is checked (``monitors.py``).

Letters: B rows, always one here; H heads, in G groups of R that share a key-value head; T positions of the row, C
queries of a chunk, K keys that any of them sees, D size of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from hpcgemma.train.anatomy import bare_model, text_decoder_of

NAME = "hpcgemma_monitors"
"""What transformers knows this attention by."""

SCORES_AT_ONCE = 1 << 24
"""Scores held at a time, 64 MiB in fp32, about seven times over; it decides how many queries are a chunk."""

Mask = Callable[[int, int], torch.Tensor]
"""Says of the queries from a first one on, so many of them, which keys they see: C x T, or H x C x T; boolean."""


@dataclass(slots=True)
class LayerSums:
    """What one layer's attention showed so far, added up over queries, in fp64.

    Entropy is that of a query's probabilities p over the keys it sees, ``-sum(p ln p)``, as in Zhai et al. 2023
    (Stabilizing Transformer Training by Preventing Attention Entropy Collapse, section 3). A score is saturated where
    its size before the softcap is above the cap: what is left of its gradient there is 1 - tanh(1)^2 = 42 % and less.
    """

    window: int | None
    """Keys that a query of this layer sees at most; None: all before it."""
    softcap: float | None
    """Cap of the scores; None: none."""
    entropy_H: torch.Tensor
    """In nats."""
    relative_H: torch.Tensor
    """Entropies as shares of ln(keys seen), the most that is possible; of queries that see two keys or more."""
    counts_6: torch.Tensor
    """Queries; those that see two keys or more; those from which the window hides a key; scores; saturated scores; and
    the sum of |tanh(score / cap)|."""
    first: torch.Tensor
    """Probability on the row's first token, as the mean over heads; a scalar. Models park attention there that they
    have no use for (Xiao et al. 2024, attention sinks), so it is kept apart from distances."""
    distance_T: torch.Tensor
    """Probability on keys so many tokens away, the first token left out, as the mean over heads."""

    @classmethod
    def empty(
        cls, window: int | None, softcap: float | None, heads: int, width: int, device: torch.device
    ) -> LayerSums:
        """Return sums of nothing, for rows of at most ``width`` tokens."""
        sizes: list[tuple[int, ...]] = [(heads,), (heads,), (6,), (), (width,)]
        return cls(window, softcap, *(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))

    def tensors(self) -> list[torch.Tensor]:
        """Return all sums, in a fixed order."""
        return [self.entropy_H, self.relative_H, self.counts_6, self.first, self.distance_T]

    def add(
        self, raw_HCK: torch.Tensor, probabilities_HCK: torch.Tensor, visible_HCK: torch.Tensor, start: int, low: int
    ) -> None:
        """Add some queries of a row.

        Args:
            raw_HCK: Scores before the softcap.
            probabilities_HCK: What came of them.
            visible_HCK: Which keys count; one head stands for all where masks do not differ.
            start: Position of the first query.
            low: Position of the first key.
        """
        device, (heads, queries, keys) = raw_HCK.device, probabilities_HCK.shape
        entropy_HC = torch.special.entr(probabilities_HCK).sum(-1).double()
        seen_HC = visible_HCK.sum(-1).expand(heads, -1)
        has_choice_HC = seen_HC > 1
        self.entropy_H += entropy_HC.sum(-1)
        self.relative_H += (entropy_HC / seen_HC.clamp(min=2).double().log() * has_choice_HC).sum(-1)
        places_C = torch.arange(start, start + queries, device=device)
        hidden = (seen_HC[0] < places_C + 1).sum()
        saturated, used = torch.zeros((), device=device), torch.zeros((), device=device)
        if self.softcap is not None:
            size_HCK = (raw_HCK / self.softcap).abs_().masked_fill_(~visible_HCK, 0.0)
            saturated, used = (size_HCK > 1).sum(), size_HCK.tanh_().sum(dtype=torch.float64)
        counts = (torch.tensor(queries, device=device), has_choice_HC[0].sum(), hidden, seen_HC.sum(), saturated, used)
        self.counts_6 += torch.stack([count.double() for count in counts])
        mass_CK = probabilities_HCK.mean(0)
        if low == 0:
            self.first += mass_CK[:, 0].sum(dtype=torch.float64)
            mass_CK[:, 0] = 0.0
        mass_J = _diagonal_sums(mass_CK)
        distance_J = (torch.arange(len(mass_J), device=device) + (start - low - keys + 1)).abs_()
        # What is farther than a row is long is padding, which no query that counts sees.
        self.distance_T.index_add_(0, distance_J.clamp_(max=len(self.distance_T) - 1), mass_J)


class WatchedAttention:
    """An attention function for transformers, and what it saw of each layer.

    Args:
        width: Tokens of the longest row that will come.
    """

    def __init__(self, width: int) -> None:
        self.layers: list[LayerSums] = []
        """In the order in which a forward pass comes to them."""
        self._width, self._length, self._next = width, 0, 0

    def begin(self, length: int) -> None:
        """Expect the forward pass of a row, whose first ``length`` positions count; 0: none does."""
        self._length, self._next = length, 0

    def __call__(
        self,
        module: torch.nn.Module,
        query_BHTD: torch.Tensor,
        key_BGTD: torch.Tensor,
        value_BGTD: torch.Tensor,
        attention_mask: Any,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        sliding_window: int | None = None,
        **unused: Any,
    ) -> tuple[torch.Tensor, None]:
        """Return one layer's attention of one row, B x T x H x D; called by transformers.

        Raises:
            ValueError: There is more than one row.
        """
        if len(query_BHTD) != 1:
            raise ValueError(f"one row at a time is watched, not {len(query_BHTD)}")
        (heads, width, size), groups = query_BHTD.shape[1:], key_BGTD.shape[1]
        if self._next == len(self.layers):
            self.layers.append(LayerSums.empty(sliding_window, softcap, heads, self._width, query_BHTD.device))
        sums = self.layers[self._next]
        self._next += 1
        mask = attention_mask if callable(attention_mask) else partial(_mask_of, attention_mask, width, sliding_window)
        with torch.autocast(query_BHTD.device.type, enabled=False):
            query_GRTD = query_BHTD[0].float().view(groups, heads // groups, width, size)
            key_GTD, value_GTD = key_BGTD[0].float(), value_BGTD[0].float()
            output_HTD = torch.empty(heads, width, value_GTD.shape[-1], device=query_BHTD.device)
            chunk = max(1, SCORES_AT_ONCE // (heads * width))
            for start in range(0, width, chunk):
                count = min(chunk, width - start)
                visible_HCK = mask(start, count).to(query_BHTD.device).reshape(-1, count, width)
                columns = visible_HCK.flatten(0, 1).any(0).nonzero()
                low, high = int(columns[0]), int(columns[-1]) + 1
                visible_HCK = visible_HCK[..., low:high]
                queries_GMD = query_GRTD[:, :, start : start + count].flatten(1, 2)  # M: R x C, so that keys stay one
                raw_GMK = queries_GMD @ key_GTD[:, low:high].mT * (size**-0.5 if scaling is None else scaling)
                raw_HCK = raw_GMK.view(heads, count, -1)
                scores_HCK = raw_HCK if softcap is None else (raw_HCK / softcap).tanh_().mul_(softcap)
                probabilities_HCK = scores_HCK.masked_fill(~visible_HCK, -torch.inf).softmax(-1)
                del scores_HCK
                taken_GMD = probabilities_HCK.view_as(raw_GMK) @ value_GTD[:, low:high]
                output_HTD[:, start : start + count] = taken_GMD.view(heads, count, -1)
                counted = min(count, self._length - start)
                if counted > 0:
                    few = (raw_HCK[:, :counted], probabilities_HCK[:, :counted], visible_HCK[:, :counted])
                    sums.add(*few, start, low)
        return output_HTD.transpose(0, 1)[None].to(query_BHTD.dtype), None


@contextmanager
def watched(model: Any, attention: WatchedAttention) -> Iterator[None]:
    """Let a model compute its attention through ``attention``; only in this context.

    Every config that its text decoder reads is told so, and told back. A vision tower is left alone. The names stay in
    transformers' registries, which have no way to take one out; no other config ever has them.

    Args:
        model: A transformers model, or a peft model around one.
        attention: What it computes with.
    """
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, _lazy_mask)
    owners = [getattr(module, "config", None) for module in text_decoder_of(model).modules()]
    configs = {id(each): each for each in (bare_model(model).config.get_text_config(), *owners) if each is not None}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name


def _diagonal_sums(values_CK: torch.Tensor) -> torch.Tensor:
    """Return the sums over each diagonal, from that of the top right corner to the bottom left one, in fp64.

    Each line is moved one place further to the right than the one above it, by reading them with a line length that is
    shorter by one; so sums over columns do, which need no atomic additions on a GPU.
    """
    count, keys = values_CK.shape
    padded = functional.pad(values_CK.flip(-1), (0, count))
    return padded.flatten()[: count * (keys + count - 1)].view(count, -1).sum(0, dtype=torch.float64)


def _lazy_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    **given: Any,
) -> Mask:
    """Return transformers' own mask, made for a few queries at a time; called by transformers 5.23."""
    given |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}

    def visible_CT(start: int, count: int) -> torch.Tensor:
        made: Any = sdpa_mask(batch_size, count, kv_length, q_offset + start, kv_offset, **given)
        mask_CT: torch.Tensor = made[0, 0]
        return mask_CT

    return visible_CT


def _mask_of(given: Any, width: int, window: int | None, start: int, count: int) -> torch.Tensor:
    """Return what some queries see by a mask that was made elsewhere; without one, all before them in the window."""
    if isinstance(given, torch.Tensor):
        mask_HCT = given[0, :, start : start + count]
        return mask_HCT if mask_HCT.dtype == torch.bool else mask_HCT > torch.finfo(mask_HCT.dtype).min / 2
    ahead_CT = torch.arange(start, start + count)[:, None] - torch.arange(width)
    return (ahead_CT >= 0) & (ahead_CT < (width if window is None else window))
