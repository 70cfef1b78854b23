"""Which loss a source has: InfoNCE with or without a guide, CoSENT, or one of distillation."""

from typing import Any

import torch
from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedGISTEmbedLoss,
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    MultipleNegativesRankingLoss,
)

from llm2comp.data.drawn.pair_file import negatives_of
from llm2comp.data.sources import SCORE
from llm2comp.inference.load import load_in
from llm2comp.inference.vector_format import require_dim
from llm2comp.model.matryoshka.nested_tokens import NestedTokens
from llm2comp.model.multi_vector.max_sim import MaxSim
from llm2comp.model.multi_vector.memory_vectors import MemoryVectors
from llm2comp.recipe import Contrastive, Supervised
from llm2comp.training.distributed import world
from llm2comp.training.losses.distillation import LABEL, distillation
from llm2comp.training.losses.parts_of_a_row import sum_of_parts
from llm2comp.training.losses.token_limited import TokenLimitedGIST, TokenLimitedInfoNCE
from llm2comp.utils.hardware import compute_dtype


def losses_of(
    model: SentenceTransformer, stage: Contrastive, data: Dataset | DatasetDict
) -> torch.nn.Module | dict[str, torch.nn.Module]:
    """Return the loss or, with several datasets, the loss of each.

    Args:
        model: the encoder. With `vectors: k`, it ends with `MemoryVectors`; with
            `matryoshka_tokens`, with `NestedTokens`.
        stage: its settings.
        data: the rows to train on.
    """
    losses, last = _losses_of_one_row(model, stage, data), model[-1]
    if isinstance(last, NestedTokens):
        size = require_dim(model, None)
        parts = [slice(place * size, (place + 1) * size) for place in range(len(last.counts))]
        every = losses.values() if isinstance(losses, dict) else [losses]
        for loss in {id(loss): loss for loss in every}.values():
            sum_of_parts([loss] * len(parts), parts)
    return losses


def _losses_of_one_row(
    model: SentenceTransformer, stage: Contrastive, data: Dataset | DatasetDict
) -> torch.nn.Module | dict[str, torch.nn.Module]:
    """Return the losses of what an encoder gives outside of training or, with `vectors: k`, of k.

    Args:
        model: the encoder.
        stage: its settings.
        data: the rows to train on.
    """
    if isinstance(data, Dataset):
        return _info_nce(model, stage, 1)
    most = max(negatives_of(dataset)[1] for dataset in data.values())
    info_nce = _info_nce(model, stage, max(most, 1))
    scale = 1.0 / stage.temperature
    cosent: torch.nn.Module = CoSENTLoss(model, scale=scale)
    if isinstance(stage, Supervised) and stage.vectors == "k":
        last, dimension = model[-1], require_dim(model, None)
        assert isinstance(last, MemoryVectors)
        max_sim = MaxSim(len(last.token_ids))
        many = _info_nce(model, stage, max(most, 1), similarity_fct=max_sim)
        parts = [slice(dimension), slice(dimension, None)]
        info_nce = sum_of_parts([info_nce, many], parts)
        symmetric = CoSENTLoss(model, scale=scale, similarity_fct=max_sim.symmetric)
        cosent = sum_of_parts([cosent, symmetric], parts)
    losses: dict[str, torch.nn.Module] = {}
    for name, dataset in data.items():
        if LABEL in dataset.column_names:
            losses[name] = distillation(model, dataset, stage.temperature)
        else:
            losses[name] = cosent if SCORE in dataset.column_names else info_nce
    return losses


def _info_nce(
    model: SentenceTransformer, stage: Contrastive, most: int, **similarity: Any
) -> torch.nn.Module:
    """Return the loss of pairs and of pairs with negatives.

    The cached version (GradCache) is used only if a batch does not fit in one mini-batch, because
    it has the same gradient but costs one more forward pass. With a guide it is always used,
    because the other version takes one negative at most.

    Args:
        model: the encoder.
        stage: its settings.
        most: the most texts of a row in a column.
        similarity: another `similarity_fct` than the cosine; not with a guide.
    """
    rows, tokens = _in_memory(model, stage)
    if isinstance(stage, Supervised) and stage.guide is not None:
        return guided(model, stage, _guide(stage.guide, model))
    options: dict[str, Any] = {"scale": 1.0 / stage.temperature} | similarity
    if tokens is not None:
        return TokenLimitedInfoNCE(model, tokens, mini_batch_size=rows, **options)
    if stage.batch_size // world.size() * most <= rows:
        return MultipleNegativesRankingLoss(model, **options)
    return CachedMultipleNegativesRankingLoss(model, mini_batch_size=rows, **options)


def guided(
    model: SentenceTransformer, stage: Contrastive, guide: SentenceTransformer
) -> torch.nn.Module:
    """Return InfoNCE without the negatives that the guide scores above the positive.

    Queries are compared with passages only, as without a guide. GISTEmbed (arXiv 2402.16829) adds
    other queries to the negatives of a query, and other passages to those of a passage.

    Args:
        model: the encoder.
        stage: its settings.
        guide: the guide.
    """
    rows, tokens = _in_memory(model, stage)
    options: dict[str, Any] = {
        "temperature": stage.temperature,
        "mini_batch_size": rows,
        "contrast_anchors": False,
        "contrast_positives": False,
    }
    loss = (
        CachedGISTEmbedLoss(model, guide, **options)
        if tokens is None
        else TokenLimitedGIST(model, guide, tokens, **options)
    )
    if not _reads_the_same(model, guide):
        loss.must_retokenize, loss.tokenizer = True, model.tokenizer
    return loss


def _reads_the_same(model: SentenceTransformer, guide: SentenceTransformer) -> bool:
    """Return whether a guide reads a text as the same ids as the encoder.

    The loss compares the vocabularies, and neither memory tokens nor the choice of BOS are there.
    """
    texts = ["", "A text."]
    ids, ids_of_guide = (one.tokenizer(texts)["input_ids"] for one in (model, guide))
    return bool(ids == ids_of_guide)


def _in_memory(model: SentenceTransformer, stage: Contrastive) -> tuple[int, int | None]:
    """Return the texts and the tokens of a mini-batch, whose texts may each pass several times."""
    last, tokens = model[-1], stage.mini_batch_tokens
    passes = last.passes if isinstance(last, NestedTokens) else 1
    rows = max(1, stage.mini_batch_size // passes)
    return rows, None if tokens is None else max(1, tokens // passes)


def _guide(name: str, model: SentenceTransformer) -> SentenceTransformer:
    """Return an encoder that does not train, on the device of the one that does."""
    guide = load_in(name, compute_dtype("auto")).to(model.device)
    return guide.requires_grad_(False).train(False)
