"""An encoder of ours whose embedding of a text is its k memory vectors, in memory only."""

import copy
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from llm2comp.errors import UserError
from llm2comp.model.matryoshka.first_tokens import pooled_ids
from llm2comp.model.modules import MergeMemory, UnsavableModule, memory_weights

Beside = Literal["training", "always"]


class MemoryVectors(UnsavableModule):
    """Gives the outputs of the memory tokens, each of unit length, one after the other.

    It is the last module of an encoder. The losses and the tasks read one row per text, so the
    vectors of a text are one row.

    Args:
        token_ids: of the memory tokens, of which every text has each once.
        beside: after the embedding of the text, in the same row; in training only, or always. By
            default the vectors stand in its place.
    """

    config_keys = ["token_ids", "beside"]  # noqa: RUF012 (sentence-transformers reads a list)

    def __init__(self, token_ids: list[int], *, beside: Beside | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.token_ids = token_ids
        self.beside = beside

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Set the embeddings of a batch.

        Args:
            features: with `token_embeddings` `(batch, length, hidden)`, `input_ids` and
                `attention_mask` `(batch, length)`, and `sentence_embedding` `(batch, hidden)`.

        Returns:
            The features with `sentence_embedding` `(batch, k * hidden)` or, with `beside`,
            `(batch, (1 + k) * hidden)`.
        """
        if self.beside == "training" and not self.training:
            return features
        ids = features["input_ids"]
        is_memory = torch.isin(ids, torch.tensor(self.token_ids, device=ids.device))
        is_memory &= features["attention_mask"].bool()
        states = features["token_embeddings"][is_memory]
        states = states.reshape(len(ids), len(self.token_ids), -1)
        rows = normalize(states.float(), dim=-1).flatten(1)
        if self.beside:
            rows = torch.cat([features["sentence_embedding"].float(), rows], dim=1)
        return features | {"sentence_embedding": rows}


def memory_token_ids(encoder: SentenceTransformer, name: str) -> list[int]:
    """Return the ids of the memory tokens that an encoder pools.

    Args:
        encoder: the encoder.
        name: of the encoder, for the message.

    Raises:
        UserError: if there are not several, or the encoder merges them.
    """
    weights = memory_weights(encoder)
    if weights is None:
        raise UserError(f"{name} has no memory tokens, and so it has one vector per text")
    if any(isinstance(module, MergeMemory) for module in encoder):
        raise UserError(f"{name} merges memory tokens; load it without merging to use each of them")
    ids = pooled_ids(weights)
    if len(ids) == 1:
        raise UserError(f"{name} has one memory token, and so it has one vector per text")
    return ids


def append_memory_vectors(
    encoder: SentenceTransformer, name: str, *, beside: Beside | None = None
) -> SentenceTransformer:
    """Let an encoder give its k memory vectors, in memory only.

    Args:
        encoder: changed in place.
        name: of the encoder, for the message.
        beside: as `MemoryVectors` takes it.

    Returns:
        The same encoder.

    Raises:
        UserError: as `memory_token_ids`.
    """
    encoder.append(MemoryVectors(memory_token_ids(encoder, name), beside=beside))
    return encoder


def sharing_memory_vectors(
    encoder: SentenceTransformer, name: str, *, beside: Beside | None = None
) -> SentenceTransformer:
    """Return an encoder of the k memory vectors that shares all modules with another one.

    Args:
        encoder: which gives the embeddings that it gave. Threads must not use both at once.
        name: of the encoder, for the message.
        beside: as `MemoryVectors` takes it.

    Raises:
        UserError: as `memory_token_ids`.
    """
    shared = copy.copy(encoder)
    shared._modules = dict(encoder._modules)
    return append_memory_vectors(shared, name, beside=beside)
