"""How near the output head's logits are to their softcap, at the positions that are learned.

Letters: T positions of a row, N learned tokens, C of them in a chunk, D hidden size, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from hpcgemma.train.anatomy import Head, decoder_of, head_of

LOGITS_AT_ONCE = 1 << 24
"""Logits held at a time, 64 MiB in fp32, about three times over."""


class WatchedLogits:
    """What the logits before the softcap showed so far, added up over learned tokens, in fp64."""

    def __init__(self, device: torch.device) -> None:
        self.counts_5 = torch.zeros(5, dtype=torch.float64, device=device)
        """Logits; those that are saturated, |logit| above the cap; the sum of |tanh(logit / cap)|; learned tokens; and
        those whose largest logit is saturated."""
        self._positions_N: torch.Tensor | None = None

    def begin(self, positions_N: torch.Tensor) -> None:
        """Expect the forward pass of a row with these learned positions."""
        self._positions_N = positions_N

    def add(self, hidden_ND: torch.Tensor, head: Head) -> None:
        """Add learned tokens; in the autocast's precision, as the loss computes logits."""
        if head.softcap is None:
            return
        for hidden_CD in torch.split(hidden_ND, max(1, LOGITS_AT_ONCE // len(head.weight))):
            logits_CV = functional.linear(hidden_CD.to(head.weight.dtype), head.weight, head.bias).float()
            share_CV = logits_CV.mul_(head.logit_scale / head.softcap)
            counts = (
                torch.tensor(share_CV.numel(), device=share_CV.device),
                (share_CV.abs() > 1).sum(),
                share_CV.tanh().abs_().sum(dtype=torch.float64),
                torch.tensor(len(share_CV), device=share_CV.device),
                (share_CV.amax(-1) > 1).sum(),
            )
            self.counts_5 += torch.stack([count.double() for count in counts])

    @contextmanager
    def of(self, model: Any) -> Iterator[None]:
        """Look on while the loss of a model is computed.

        It is done inside the strategy's forward pass, where the head's weight is whole.
        """

        def look(_module: Any, _inputs: Any, output: Any) -> None:
            assert self._positions_N is not None
            self.add(output.last_hidden_state.flatten(0, 1)[self._positions_N], head_of(model))

        handle = decoder_of(model).register_forward_hook(look)
        try:
            yield
        finally:
            handle.remove()
