"""Matryoshka training: the first dimensions of an embedding are an embedding too."""

from collections.abc import Sequence

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss
from torch import nn

from llm2comp.errors import UserError

Losses = nn.Module | dict[str, nn.Module]
"""The loss of a stage or, with several datasets, the loss of each."""


def matryoshka(model: SentenceTransformer, losses: Losses, dims: Sequence[int] | None) -> Losses:
    """Return losses that are the sum of a loss over truncated embeddings.

    Kusupati et al., 2022, arXiv 2205.13147. All dimensions have the weight 1, as there.

    Args:
        model: the encoder.
        losses: its losses. Cached ones are changed themselves.
        dims: numbers of leading dimensions; None returns the losses as they are.
    """
    if dims is None:
        return losses
    if not isinstance(losses, dict):
        return MatryoshkaLoss(model, losses, dims)
    # A loss of several datasets is wrapped once, because wrapping changes a cached loss in place.
    distinct = {id(loss): loss for loss in losses.values()}
    wrapped = {key: MatryoshkaLoss(model, loss, dims) for key, loss in distinct.items()}
    return {name: wrapped[id(loss)] for name, loss in losses.items()}


def require_counts(stage: str, counts: Sequence[int] | None, k: int) -> None:
    """Check the numbers of memory tokens of a stage against those of the encoder.

    Args:
        stage: name of the stage.
        counts: numbers of first memory tokens, if the stage has any.
        k: memory tokens of the encoder.

    Raises:
        UserError: if one is too large, the encoder has one token or none, or all of its tokens
            would not be trained together.
    """
    if counts is None:
        return
    if k < 2:
        raise UserError(
            f"{stage}.matryoshka_tokens: it needs an encoder with several memory tokens, and this "
            f"one has {k}; leave it out"
        )
    if max(counts) > k:
        raise UserError(
            f"{stage}.matryoshka_tokens: {max(counts)} is more than the {k} memory tokens of the "
            "encoder; leave it out"
        )
    if k not in counts:
        raise UserError(
            f"{stage}.matryoshka_tokens: the embedding of all memory tokens would not be trained; "
            f"add {k}"
        )


def require_dims(stage: str, dims: Sequence[int] | None, dimension: int) -> None:
    """Check the dimensions of a stage against those of an embedding.

    Args:
        stage: name of the stage.
        dims: numbers of leading dimensions, if the stage has any.
        dimension: of a whole embedding.

    Raises:
        UserError: if one is too large, or the whole embedding would not be trained.
    """
    if dims is None:
        return
    if max(dims) > dimension:
        raise UserError(
            f"{stage}.matryoshka: {max(dims)} is more than the {dimension} dimensions of an "
            "embedding; leave it out"
        )
    if dimension not in dims:
        raise UserError(
            f"{stage}.matryoshka: the whole embedding would not be trained; add {dimension}"
        )
