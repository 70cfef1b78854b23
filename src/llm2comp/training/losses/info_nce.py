"""InfoNCE with in-batch negatives, with or without a guide that tells false negatives."""

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedGISTEmbedLoss,
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)

from llm2comp.inference.load import load_in
from llm2comp.recipe import Contrastive, Supervised
from llm2comp.training.losses.token_limited import TokenLimitedGIST, TokenLimitedInfoNCE
from llm2comp.utils.hardware import compute_dtype


def info_nce(model: SentenceTransformer, stage: Contrastive, *, gather: bool) -> torch.nn.Module:
    """Return the loss of pairs and of pairs with negatives.

    The cached version (GradCache) is used only if a batch does not fit in one mini-batch, because
    it has the same gradient but costs one more forward pass. With a guide it is always used,
    because the other version takes one negative at most.

    Args:
        model: the encoder.
        stage: its settings.
        gather: whether the negatives of all processes are used.
    """
    rows, tokens = stage.mini_batch_size, stage.mini_batch_tokens
    if isinstance(stage, Supervised) and stage.guide is not None:
        return guided(model, stage, _guide(stage.guide, model), gather=gather)
    options: dict[str, Any] = {"scale": 1.0 / stage.temperature, "gather_across_devices": gather}
    if tokens is not None:
        return TokenLimitedInfoNCE(model, tokens, mini_batch_size=rows, **options)
    if stage.batch_size <= rows:
        return MultipleNegativesRankingLoss(model, **options)
    return CachedMultipleNegativesRankingLoss(model, mini_batch_size=rows, **options)


def guided(
    model: SentenceTransformer, stage: Contrastive, guide: SentenceTransformer, *, gather: bool
) -> torch.nn.Module:
    """Return InfoNCE without the negatives that the guide scores above the positive.

    Queries are compared with passages only, as without a guide. GISTEmbed (arXiv 2402.16829) adds
    other queries to the negatives of a query, and other passages to those of a passage.

    Args:
        model: the encoder.
        stage: its settings.
        guide: the guide.
        gather: whether the negatives of all processes are used.
    """
    options: dict[str, Any] = {
        "temperature": stage.temperature,
        "mini_batch_size": stage.mini_batch_size,
        "gather_across_devices": gather,
        "contrast_anchors": False,
        "contrast_positives": False,
    }
    if stage.mini_batch_tokens is not None:
        return TokenLimitedGIST(model, guide, stage.mini_batch_tokens, **options)
    return CachedGISTEmbedLoss(model, guide, **options)


def _guide(name: str, model: SentenceTransformer) -> SentenceTransformer:
    """Return an encoder that does not train, on the device of the one that does."""
    guide = load_in(name, compute_dtype("auto")).to(model.device)
    return guide.requires_grad_(False).train(False)
