"""Cross-entropy of a large vocabulary without ever holding the logits whole.

At a vocabulary of 262,144 the logits of 8,192 tokens are 8 GiB in fp32, and plain autograd holds several copies. Here
the head's matmul, the loss and the gradients are computed for a chunk of tokens at a time, all in the forward pass: the
loss is one number, so that backward only scales what is there. That is three matmuls a chunk, as many as plain autograd
takes, and nothing is recomputed. The idea is that of Malek's efficient_cross_entropy and of Liger-Kernel (Hsu et al.
2024, arXiv:2410.10989). torch 2.13's own ``linear_cross_entropy`` knows no softcap.

Letters: N learned tokens, K of them in a chunk, B of those in a block, D hidden features, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch.autograd.function import once_differentiable

P = ParamSpec("P")

BLOCK_ELEMENTS = 1 << 25
"""Logits that are in fp32 at a time: few beside a chunk, yet rows enough (128 of 262,144) for a GPU's processors."""

SLICE_ROWS = 1 << 15
"""Rows of the head whose gradient is held in the matmul's precision, on its way to the fp32 sum."""


def _eager(function: Callable[P, torch.Tensor]) -> Callable[P, torch.Tensor]:
    # torch.compile could trace it, but would unroll the chunks and compile anew for every number of tokens.
    disable: Callable[..., Callable[P, torch.Tensor]] = torch.compiler.disable
    return disable(function)


@_eager
def summed_cross_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    labels_N: torch.Tensor,
    *,
    counts_N: torch.Tensor | None = None,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_tokens: int = 1024,
) -> torch.Tensor:
    """Return the cross-entropy of a linear head's predictions, summed over the tokens.

    The logits are ``(hidden @ weight.T + bias) * logit_scale``, then, with a softcap, ``softcap * tanh(logits /
    softcap)``: Gemma 2's own, as transformers computes them. Matmuls are in the autocast's precision, without one in
    the weight's; all between them is in fp32 (or fp64, if the weight is).

    Without tokens the loss is a zero whose gradients are zeros, so that a rank which has none still takes part.

    Args:
        hidden_ND: Hidden states at the positions that predict a learned token.
        weight_VD: The head's weight. It is not kept for backward, so FSDP may free it after the forward pass.
        labels_N: The tokens to predict, int64, all of them in the vocabulary.
        counts_N: Whether a token counts; None counts all. Only for who needs a fixed N: what does not count is computed
            too.
        bias_V: The head's bias.
        softcap: Where the logits are capped.
        logit_scale: What the logits are multiplied with.
        chunk_tokens: Tokens whose logits are held at a time, in the matmul's precision.

    Returns:
        A scalar. Its backward may run once: it gives its gradients away.
    """
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    learns = torch.is_grad_enabled()  # inside a Function it is off, and needs_input_grad does not tell
    needed = tuple(learns and each is not None and each.requires_grad for each in (hidden_ND, weight_VD, bias_V))
    apply: Callable[..., torch.Tensor] = _SummedCrossEntropy.apply
    return apply(hidden_ND, weight_VD, bias_V, labels_N, counts_N, needed, dtype, softcap, logit_scale, chunk_tokens)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        counts_N: torch.Tensor | None,
        needed: tuple[bool, bool, bool],
        dtype: torch.dtype,
        softcap: float | None,
        logit_scale: float,
        chunk_tokens: int,
    ) -> torch.Tensor:
        num_tokens, vocabulary = len(hidden_ND), len(weight_VD)
        # fp32 also for a bf16 weight: a bf16 sum is rounded once a chunk, which has made trainings diverge
        # (Liger-Kernel#512, xtuner#1747), while one matmul over all tokens is rounded once.
        wide = torch.promote_types(dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=hidden_ND.device)
        hidden_gradient_ND = torch.zeros_like(hidden_ND) if needed[0] else None
        weight_gradient_VD = torch.zeros_like(weight_VD, dtype=wide) if needed[1] else None
        bias_gradient_V = torch.zeros_like(bias_V, dtype=wide) if needed[2] and bias_V is not None else None

        hidden_ND, cast_VD = hidden_ND.to(dtype), weight_VD.to(dtype)  # once, not once a chunk
        num_chunks = max(1, -(-num_tokens // chunk_tokens))
        rows = max(1, -(-num_tokens // num_chunks))  # even chunks: the last is no rest
        buffer_KV = torch.empty(min(rows, num_tokens), vocabulary, dtype=dtype, device=hidden_ND.device)
        block = max(1, BLOCK_ELEMENTS // vocabulary)
        for start in range(0, num_tokens, rows):
            chunk = slice(start, start + rows)
            hidden_KD, labels_K1 = hidden_ND[chunk], labels_N[chunk, None]
            logits_KV = torch.mm(hidden_KD, cast_VD.T, out=buffer_KV[: len(hidden_KD)])
            for place, (logits_BV, labels_B1) in enumerate(
                zip(torch.split(logits_KV, block), torch.split(labels_K1, block), strict=True)
            ):
                first = start + place * block
                counts_B1 = None if counts_N is None else counts_N[first : first + len(labels_B1), None]
                loss += _to_gradient(logits_BV, labels_B1, counts_B1, bias_V, softcap, logit_scale, wide, any(needed))
            if hidden_gradient_ND is not None:
                hidden_gradient_ND[chunk] = logits_KV @ cast_VD
            if weight_gradient_VD is not None:
                _add_product(weight_gradient_VD, logits_KV, hidden_KD)
            if bias_gradient_V is not None:
                bias_gradient_V += logits_KV.sum(0, dtype=wide)
        ctx.gradients = (
            hidden_gradient_ND,
            None if weight_gradient_VD is None else weight_gradient_VD.to(weight_VD.dtype),
            bias_gradient_V,
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the gradients of this loss were taken before: compute it again, retain_graph has none")
        # In place: the weight's gradient is as large as the weight.
        return (*(each if each is None else each.mul_(loss_gradient) for each in gradients), *(None,) * 7)


def _to_gradient(
    logits_BV: torch.Tensor,
    labels_B1: torch.Tensor,
    counts_B1: torch.Tensor | None,
    bias_V: torch.Tensor | None,
    softcap: float | None,
    logit_scale: float,
    wide: torch.dtype,
    gradient_needed: bool,
) -> torch.Tensor:
    """Return the loss of some rows of a product, and turn the product, in place, into the loss's gradient."""
    wide_BV = logits_BV.to(wide)  # itself, if it is wide already
    if bias_V is not None:
        wide_BV.add_(bias_V)
    if logit_scale != 1:
        wide_BV.mul_(logit_scale)
    squared_tanh_BV = None
    if softcap is not None:
        wide_BV.div_(softcap).tanh_()
        squared_tanh_BV = wide_BV.square() if gradient_needed else None
        wide_BV.mul_(softcap)
    # Over its own input: each row is reduced before it is written, by torch's kernels for the CPU as for CUDA.
    torch.log_softmax(wide_BV, 1, out=wide_BV)
    picked_B1 = wide_BV.gather(1, labels_B1)
    loss = -(picked_B1 if counts_B1 is None else picked_B1 * counts_B1).sum()
    if gradient_needed:
        wide_BV.exp_()
        wide_BV.scatter_(1, labels_B1, wide_BV.gather(1, labels_B1) - 1)
        if squared_tanh_BV is not None:
            wide_BV.addcmul_(wide_BV, squared_tanh_BV, value=-1)  # tanh' = 1 - tanh^2
        if logit_scale != 1:
            wide_BV.mul_(logit_scale)
        if counts_B1 is not None:
            wide_BV.mul_(counts_B1)
        if wide_BV is not logits_BV:
            logits_BV.copy_(wide_BV)
    return loss


def _add_product(sum_VD: torch.Tensor, left_KV: torch.Tensor, right_KD: torch.Tensor) -> None:
    """Add the transposed left times the right to a sum that may be of a wider precision."""
    if sum_VD.dtype == left_KV.dtype:
        sum_VD.addmm_(left_KV.T, right_KD)
        return
    for sum_SD, left_KS in zip(torch.split(sum_VD, SLICE_ROWS), torch.split(left_KV, SLICE_ROWS, 1), strict=True):
        sum_SD.add_(left_KS.T @ right_KD)
