"""Noise on the input embeddings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hpcgemma.train.anatomy import bare_model
from hpcgemma.train.data.prepared import PreparedData
from tests.train.models import built, some_ids

# peft 0.21 asks transformers for a name that is to go in version 6.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

LORA: dict[str, Any] = {"lora.rank": 4}


@pytest.mark.parametrize("changes", [{}, LORA, {**LORA, "lora.modules_to_save": ["embed_tokens", "lm_head"]}])
def test_noise_on_the_embeddings_is_that_of_neftune(prepared: PreparedData, changes: dict[str, Any]) -> None:
    model = built("gemma2", prepared, {**changes, "training.neftune_alpha": 5.0}).model
    plain = built("gemma2", prepared, changes).model
    ids_BT = some_ids(2, 40)
    ids_BT[1, 10:] = prepared.special["pad"]
    noisy, quiet = (bare_model(each).get_input_embeddings() for each in (model, plain))
    torch.manual_seed(3)
    noise_BTD = (noisy(ids_BT) - quiet(ids_BT)).detach()
    torch.manual_seed(3)
    assert torch.equal((noisy(ids_BT) - quiet(ids_BT)).detach(), noise_BTD)
    for row, tokens in enumerate((40, 10)):
        limit = 5.0 / (tokens * 32) ** 0.5
        assert noise_BTD[row].abs().max().item() == pytest.approx(limit, rel=0.02)
        assert noise_BTD[row].std().item() == pytest.approx(limit / 3**0.5, rel=0.05)
    model.eval()
    assert torch.equal(noisy(ids_BT), quiet(ids_BT))
