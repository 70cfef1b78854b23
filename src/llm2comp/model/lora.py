"""PEFT's layers with fewer passes over memory: the same sums, and what is saved is PEFT's."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import Tensor, nn
from torch.nn.functional import embedding


class MemoryEmbedding(TrainableTokensLayer):
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


class LoraLinear(Linear):
    """PEFT's layer, scaled where it has the rank's few columns.

    PEFT multiplies its whole output, which in a step is two more passes over it, and copies each
    input to the factors' float32, which autocast then takes back: here it stays as it is.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return ``(..., out)`` of ``(..., in)``: ``W x + B (s A x)``, with ``s = alpha / r``."""
        if self.disable_adapters or self.merged or kwargs or len(self.active_adapters) != 1:
            return super().forward(x, *args, **kwargs)
        name = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant:
            return super().forward(x, *args, **kwargs)
        result: Tensor = self.base_layer(x)
        inner = self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]
        change: Tensor = self.lora_B[name](inner)
        return (result + change).to(result.dtype)


LIGHTER: dict[type, type[nn.Module]] = {TrainableTokensLayer: MemoryEmbedding, Linear: LoraLinear}


def replace_peft_layers(adapted: PeftModel) -> None:
    """Exchange the layers of an adapted model for those of here, in place."""
    for module in cast(nn.Module, adapted).modules():
        if type(module) in LIGHTER:
            module.__class__ = LIGHTER[type(module)]
