"""NEFTune: noise on the input embeddings while a model trains (Jain et al. 2023, algorithm 1).

Letters: B rows, T positions, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hpcgemma.train.anatomy import bare_model


def add_noise(model: Any, alpha: float, pad_id: int) -> None:
    """Let the input embeddings of a model be noisy in training mode.

    Each number gets uniform noise between -1 and 1, times ``alpha / sqrt(tokens of the row * D)``; padding does not
    count as tokens. The noise comes from torch's default generator, as dropout does, and so repeats with its seed.

    Args:
        model: A transformers model, or a peft model around one.
        alpha: Strength; the paper uses 5 to 15.
        pad_id: The token that fills rows up.
    """

    def noisy(module: nn.Module, inputs: tuple[Any, ...], output_BTD: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output_BTD
        ids_BT: torch.Tensor = inputs[0]
        tokens_B = (ids_BT != pad_id).sum(1).clamp(min=1)
        size_B11 = alpha / (tokens_B * output_BTD.shape[-1]).sqrt().view(-1, 1, 1)
        noise_BTD = torch.empty_like(output_BTD, dtype=torch.float32).uniform_(-1, 1) * size_B11
        return output_BTD + noise_BTD.to(output_BTD.dtype)

    embeddings: nn.Module = bare_model(model).get_input_embeddings()
    embeddings.register_forward_hook(noisy)
