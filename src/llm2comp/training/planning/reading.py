"""What the loss of reading memory needs in a step of stage 3.

`llm2comp.training.losses.reading` computes that loss. Its passes through the two models are named
here, one by one, as `on_meta` names those of stage 1. A test compares them with the loss itself.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any, cast

import torch
from datasets import DatasetDict
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm2comp.data.drawn.pair_file import texts_of
from llm2comp.inference.reading.answering import PROMPT, TOKENS
from llm2comp.model.attention import configure_attention, record_attention
from llm2comp.model.causal_lm.few_layers import random_model, with_layers
from llm2comp.model.causal_lm.parts import body_of, positions_of, token_table
from llm2comp.model.compressor import Decoder
from llm2comp.recipe import Pretext, Supervised
from llm2comp.training.losses.reading import FEWEST
from llm2comp.training.objectives.objective import Objective
from llm2comp.training.objectives.registry import OBJECTIVES
from llm2comp.training.planning import on_meta
from llm2comp.training.planning.meter import Need
from llm2comp.training.planning.step import Step, Trained, whole_need

Pair = tuple[int, int]
"""Tokens of a passage, and of the question and the answer after it."""


def reading_step(
    stage: Supervised,
    trained: Trained,
    data: DatasetDict,
    encoder: Callable[[int], PreTrainedModel],
) -> Step:
    """Return what reading memory needs in a step, beside the other loss.

    The weights of the model that reads are not part of it.

    Args:
        stage: the stage, with `reading`.
        trained: what the run trains.
        data: its rows by source, as `llm2comp.data.drawn.pair_file` writes them.
        encoder: returns the body that the stage trains, of so many layers.
    """
    batches = _batches(stage, trained, data)
    read = [batch for batch in batches if batch]
    if not read:  # all passages are short
        return Step(0.0, 0.0, 0.0, 0.0)
    rows = max(map(len, read))
    passage, after = (max(lengths) for lengths in zip(*chain(*read), strict=True))
    after = min(after, (positions_of(trained.config) or passage + after + 1) - passage - 1)
    need = reading_need(stage, trained, rows, passage, after, encoder)
    # Rows are padded to the longest of their batch.
    padded = [len(batch) * sum(map(max, zip(*batch, strict=True))) for batch in read]
    share = sum(padded) / len(batches) / (rows * (passage + after))
    tokens = [len(batch) * (trained.specials + max(batch)[0]) for batch in read]
    return Step(need.bytes, sum(tokens) / len(batches), share * need.flops, share * need.seconds)


def reading_need(
    stage: Supervised,
    trained: Trained,
    rows: int,
    passage: int,
    after: int,
    encoder: Callable[[int], PreTrainedModel],
) -> Need:
    """Return what the loss of reading some passages needs.

    Args:
        stage: the stage, with `reading`.
        trained: what the run trains.
        rows: passages.
        passage: tokens of each.
        after: tokens of each question and its answer.
        encoder: as `reading_step` takes it.
    """
    objective = _objective(trained)

    def loss(body: PreTrainedModel, reader: PreTrainedModel, count: int) -> Tensor:
        _answer(reader, count, 1 + passage + after - TOKENS)
        memory = on_meta.read(body, count, trained.specials + passage)
        vocabulary = token_table(reader).num_embeddings
        return on_meta.loss_from_memory(
            objective,
            Decoder(reader, vocabulary, bos_id=None),
            memory[:, -trained.lineage.num_memory_tokens :],
            passage,
            after,
        )

    if trained.device.type == "meta":
        body = on_meta.encoder(stage, trained)
        reader = on_meta.whole_model(trained, head=True, memory=False)
        both = nn.ModuleList([body, reader])
        return on_meta.count_on_meta(trained, both, lambda: loss(body, reader, rows))

    def build(layers: int, count: int) -> tuple[nn.Module, Callable[[], Tensor]]:
        body, reader = encoder(layers), _reader(trained, layers)
        return nn.ModuleList([body, reader]), lambda: loss(body, reader, count)

    return whole_need(trained, build, rows=rows, row_tokens=trained.specials + passage + after)


def _batches(stage: Supervised, trained: Trained, data: DatasetDict) -> list[list[Pair]]:
    """Return the pairs that are read in each batch."""
    assert stage.reading is not None
    batches = []
    for part in data.values():
        passages, questions = (
            _lengths([text for value in part[name] for text in texts_of(value)], trained, stage)
            for name in ("positive", "anchor")
        )
        around = len(_ids([PROMPT.format(question="")], trained)[0]) + TOKENS
        pairs = list(zip(passages, (around + length for length in questions), strict=True))
        for start in range(0, max(1, len(pairs) - stage.batch_size + 1), stage.batch_size):
            batch = pairs[start : start + stage.batch_size]
            batches.append([pair for pair in batch if pair[0] >= FEWEST][: stage.reading.passages])
    return batches


def _lengths(texts: list[str], trained: Trained, stage: Supervised) -> list[int]:
    longest = trained.longest_text(stage.max_length)
    return [min(len(ids), longest) for ids in _ids(texts, trained)]


def _ids(texts: list[str], trained: Trained) -> list[list[int]]:
    found = trained.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return cast(list[list[int]], found)


def _objective(trained: Trained) -> type[Objective]:
    """Return the objective of stage 1, which goes on."""
    first = trained.recipe.stages[0]
    if isinstance(first, Pretext):
        return OBJECTIVES[first.objective]
    return OBJECTIVES[str(trained.lineage.stages[0].objective)]


def _reader(trained: Trained, layers: int) -> PreTrainedModel:
    """Return a frozen language model of few layers with random weights."""
    config = with_layers(trained.config, layers)
    record_attention(config, causal=True)
    model = random_model(
        config,
        head=True,
        device=str(trained.device),
        dtype=trained.dtype,
        trust_remote_code=trained.recipe.backbone.trust_remote_code,
    )
    configure_attention(model)
    return model


@torch.no_grad()
def _answer(reader: PreTrainedModel, rows: int, prefix: int) -> None:
    """Let the frozen model say answers of the greatest length after so many tokens."""
    if token_table(reader).weight.device.type == "meta":
        # One pass has the operations of all, and `generate` looks at numbers.
        states = on_meta.read(body_of(reader), rows, prefix + TOKENS - 1)
        cast(Any, reader).get_output_embeddings()(states[:, -TOKENS:])
        return
    ids = torch.zeros(rows, prefix, dtype=torch.long, device=token_table(reader).weight.device)
    cast(Any, reader).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=TOKENS,
        max_new_tokens=TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
