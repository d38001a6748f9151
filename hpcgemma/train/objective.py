"""What is minimized: a model whose forward pass gives its loss, not its logits.

Strategies wrap this, not the bare model: weights that are gathered for a forward pass are then there for the loss too,
which needs the output head. And the logits of a batch are never held whole.

The loss is the cross-entropy summed over learned tokens, in fp32. The sum, not the mean, is what ranks and
micro-batches can add up: divided once by the learned tokens of the whole global batch, it does not depend on how rows
were spread.

Letters: B rows, T positions, N learned tokens, D hidden size, V tokens of the vocabulary, I images of C channels, H
high and W wide.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gemma3.modeling_gemma3 import get_block_sequence_ids_for_mask

from hpcgemma.recipes.types import TrainingSpec
from hpcgemma.train.anatomy import decoder_of, head_of, text_decoder_of
from hpcgemma.train.linear_loss import summed_cross_entropy


class Objective(nn.Module):
    """A model and its loss.

    Args:
        model: A transformers model, or a peft model around one.
        training: Precision and the chunk of the loss.
        autocast: Whether weights in fp32 compute in bf16 under autocast; a strategy that casts them itself says False.
    """

    def __init__(self, model: nn.Module, training: TrainingSpec, *, autocast: bool) -> None:
        super().__init__()
        self.model = model
        self._chunk_tokens = training.loss_chunk_tokens
        self._autocast = autocast and training.precision == "bf16"

    def forward(
        self,
        ids_BT: torch.Tensor,
        positions_N: torch.Tensor,
        labels_N: torch.Tensor,
        position_ids_BT: torch.Tensor | None = None,
        pixel_values_ICHW: torch.Tensor | None = None,
        token_type_ids_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the summed cross-entropy of learned tokens, a scalar in fp32.

        Args:
            ids_BT: Tokens.
            positions_N: Where a learned token is predicted, counted through all rows: row x T + position.
            labels_N: The tokens to be predicted there.
            position_ids_BT: Positions that restart with each row of a pack; None: nothing is packed.
            pixel_values_ICHW: Images; None without any.
            token_type_ids_BT: 1 where a token stands for a piece of an image; None without images.
        """
        with torch.autocast(ids_BT.device.type, torch.bfloat16, enabled=self._autocast):
            hidden_BTD = self._hidden(ids_BT, position_ids_BT, pixel_values_ICHW, token_type_ids_BT)
            head = head_of(self.model)
            return summed_cross_entropy(
                hidden_BTD.flatten(0, 1)[positions_N],
                head.weight,
                labels_N,
                bias_V=head.bias,
                softcap=head.softcap,
                logit_scale=head.logit_scale,
                chunk_tokens=self._chunk_tokens,
            )

    def _hidden(
        self,
        ids_BT: torch.Tensor,
        position_ids_BT: torch.Tensor | None,
        pixel_values_ICHW: torch.Tensor | None,
        token_type_ids_BT: torch.Tensor | None,
    ) -> torch.Tensor:
        if position_ids_BT is not None and self._takes_one_line():
            ids_BT, position_ids_BT = ids_BT.reshape(1, -1), position_ids_BT.reshape(1, -1)
            token_type_ids_BT = None if token_type_ids_BT is None else token_type_ids_BT.reshape(1, -1)
        given = {
            "position_ids": position_ids_BT,
            "pixel_values": pixel_values_ICHW,
            "token_type_ids": token_type_ids_BT,
        }
        present: dict[str, Any] = {name: each for name, each in given.items() if each is not None}
        if position_ids_BT is not None and token_type_ids_BT is not None:
            present["attention_mask"] = self._masks_of_packed_images(position_ids_BT, token_type_ids_BT)
        decoder: Any = decoder_of(self.model)
        hidden_BTD: torch.Tensor = decoder(input_ids=ids_BT, use_cache=False, **present).last_hidden_state
        return hidden_BTD

    def _masks_of_packed_images(self, position_ids_BT: torch.Tensor, token_type_ids_BT: torch.Tensor) -> dict[str, Any]:
        """Return the masks of packs with images, by kind of layer: of each row alone, and of an image all tokens.

        transformers 5.23 makes a wrong one for sliding attention: there it looks tokens of images up by their position
        in their row, where it should by their place in the pack. Built this way an image may not be longer than the
        window, and Gemma 3's 256 tokens are not.
        """
        config = cast(Any, text_decoder_of(self.model)).config
        options: dict[str, Any] = {
            "config": config,
            # Only shape, type and device of it count.
            "inputs_embeds": head_of(self.model).weight.new_empty(*position_ids_BT.shape, 0),
            "attention_mask": None,
            "past_key_values": None,
            "position_ids": position_ids_BT,
            "block_sequence_ids": get_block_sequence_ids_for_mask(token_type_ids_BT),
        }
        return {
            "full_attention": create_causal_mask(**options),
            "sliding_attention": create_sliding_window_causal_mask(**options),
        }

    def _takes_one_line(self) -> bool:
        """Whether packs must be laid end to end to be kept apart.

        With flash attention transformers looks for rows in the positions of a batch of one alone; in a larger batch all
        rows of a pack would see each other (``_is_packed_sequence`` of transformers 5.23). What comes out is the same
        line of tokens, since each pack begins at position 0.
        """
        decoder: Any = text_decoder_of(self.model)
        return "flash" in str(decoder.config._attn_implementation)
