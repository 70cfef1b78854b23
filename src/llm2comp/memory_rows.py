"""Trained memory rows, read without a copy of the token table that they are part of."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from torch.nn.functional import embedding


class MemoryRows(TrainableTokensLayer):
    """PEFT's layer, for rows that are the last of the table.

    PEFT copies the whole table to put the trained rows in, and its backward pass makes the
    gradient of the whole copy: of SmolLM2-135M 49,160 rows, for the eight that are trained.
    """

    def forward_adapters(
        self, x: Tensor, active_adapters: Sequence[str], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the embeddings ``(batch, length, hidden)`` of ids ``(batch, length)``."""
        if self.disable_adapters or self.merged or len(active_adapters) != 1:
            return super().forward_adapters(x, active_adapters, *args, **kwargs)
        table = cast(nn.Embedding, self.base_layer)
        rows = self.trainable_tokens_delta[active_adapters[0]]
        place = x - (table.num_embeddings - len(rows))
        trained = embedding(place.clamp(min=0), rows.to(table.weight.dtype))
        # Gemma's tables multiply what they give.
        trained = trained * getattr(table, "embed_scale", 1)
        return torch.where((place >= 0)[..., None], trained, table(x))


def read_rows_alone(adapted: PeftModel) -> None:
    """Let an adapted model read its memory rows by :class:`MemoryRows`, in place."""
    for module in cast(nn.Module, adapted).modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = MemoryRows
