"""In training, the embeddings of a text with fewer memory tokens beside the whole one."""

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from llm2comp.model import encoder
from llm2comp.model.modules import UnsavableModule
from llm2comp.model.multi_vector.memory_vectors import memory_token_ids


class NestedTokens(UnsavableModule):
    """Gives, in training, the embeddings of the first tokens of the memory, one after the other.

    A row of the batch becomes one row for each count, in which later memory tokens are masked as
    padding is. So no token attends to them. With causal attention no token would in any case, and
    the rows are repeated after the transformer: all counts cost one forward pass. Otherwise they
    are repeated before it.

    It is the last module of an encoder. Losses read one row per text, so the embeddings of a text
    become one row. Outside of training it does nothing.

    Args:
        token_ids: of the memory tokens, in the order in which they stand after a text.
        counts: numbers of memory tokens, the whole number first.
        passes: forward passes of a text: 1 if attention is causal, and otherwise one per count.
    """

    config_keys = ["token_ids", "counts", "passes"]  # noqa: RUF012 (a list is expected)

    def __init__(self, token_ids: list[int], counts: Sequence[int], passes: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.token_ids = token_ids
        self.counts = list(counts)
        self.passes = passes

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Put the embeddings of a text into one row.

        Args:
            features: with `sentence_embedding` `(batch * counts, hidden)`.

        Returns:
            The features with `sentence_embedding` `(batch, counts * hidden)`.
        """
        if not self.training:
            return features
        embeddings = features["sentence_embedding"]
        rows = embeddings.reshape(len(embeddings) // len(self.counts), -1)
        return features | {"sentence_embedding": rows}

    def repeat(self, features: dict[str, Any]) -> dict[str, Any]:
        """Return features with one row for each text and count.

        Args:
            features: with `input_ids` and `attention_mask` `(batch, length)`.
        """
        if not self.training:
            return features
        ids = features["input_ids"]
        kept = [
            ~torch.isin(ids, torch.tensor(self.token_ids[count:], device=ids.device))
            for count in self.counts
        ]
        repeated = {
            name: value.repeat_interleave(len(self.counts), dim=0)
            if isinstance(value, Tensor) and value.dim() > 1
            else value
            for name, value in features.items()
        }
        repeated["attention_mask"] *= torch.stack(kept, dim=1).flatten(0, 1)
        return repeated


def append_nested_tokens(model: SentenceTransformer, name: str, counts: Sequence[int]) -> None:
    """Let an encoder give, in training, the embeddings of several numbers of memory tokens.

    Args:
        model: changed in place.
        name: of the encoder, for messages.
        counts: numbers of memory tokens, the whole number among them.

    Raises:
        UserError: if the encoder does not pool several memory tokens.
    """
    causal = bool(encoder.encoder_body(model).config.is_causal)
    ids, descending = memory_token_ids(model, name), sorted(counts, reverse=True)
    nested = NestedTokens(ids, descending, 1 if causal else len(descending))
    nest(model, nested.train(model.training))


def nest(model: SentenceTransformer, nested: NestedTokens) -> None:
    """Append the module to an encoder, and let it repeat the rows of a batch."""
    transformer: nn.Module = model[0]
    if nested.passes == 1:
        transformer.register_forward_hook(lambda _module, _inputs, output: nested.repeat(output))
    else:
        transformer.register_forward_pre_hook(
            lambda _module, inputs: (nested.repeat(inputs[0]), *inputs[1:])
        )
    model.append(nested)
