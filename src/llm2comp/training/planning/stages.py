"""One step of each kind of stage, at the lengths of its rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm2comp.data.drawn.pair_file import texts_of
from llm2comp.data.length_batching import batch_by_tokens
from llm2comp.data.sources import NEGATIVE, SCORE
from llm2comp.model.attention import record_attention
from llm2comp.model.causal_lm.dropout import dropout_settings
from llm2comp.model.compressor import TOKENS_AT_ONCE
from llm2comp.model.lora import add_adapter
from llm2comp.recipe import Contrastive, Pretext, Supervised, Unsupervised
from llm2comp.recipe_parts import dataset_names
from llm2comp.training.objectives.distillation import Distillation
from llm2comp.training.objectives.embedding_prediction import EmbeddingPrediction
from llm2comp.training.objectives.mntp import MaskedNextTokenPrediction
from llm2comp.training.objectives.objective import Compression
from llm2comp.training.objectives.reconstruction import Reconstruction
from llm2comp.training.planning import on_meta
from llm2comp.training.planning.meter import Need
from llm2comp.training.planning.reading import reading_step
from llm2comp.training.planning.step import Step, Trained, whole_need
from llm2comp.training.pretext import objective_of, pretext_model

COLUMNS = ("anchor", "positive", NEGATIVE)


def pretext_step(stage: Pretext, trained: Trained, rows: Dataset) -> Step:
    """Return what a step of stage 1 needs.

    Args:
        stage: the stage.
        trained: what the run trains.
        rows: batches, as `llm2comp.data.drawn.batches` writes them.
    """
    batches = [list(zip(map(len, row["input_ids"]), row["split"], strict=True)) for row in rows]
    reads = [Reads.of(stage, trained, batch) for batch in batches]
    largest = max(range(len(reads)), key=lambda place: reads[place].kept)
    ids = max(rows[largest]["input_ids"], key=len)
    # The passage is cut where passages are cut on average, and not where it was cut by chance.
    lengths, texts = (sum(part) for part in zip(*chain(*batches), strict=True))
    split = len(ids)
    if not objective_of(stage).whole_passage:
        split = min(max(1, round(split * texts / lengths)), split - 1)
    one = Reads.of(stage, trained, [(len(ids), split)])
    count = max(1, -(-reads[largest].kept // one.kept))
    plain = stage.model_copy(update={"start_from": None, "compile": False})

    def build(layers: int, count: int) -> tuple[nn.Module, Callable[[], Tensor]]:
        body, tokenizer = trained.of_layers(layers, head=True)
        model, collator = pretext_model(trained.recipe, plain, body, tokenizer)
        model.train()
        batch = collator.batch([ids] * count, [split] * count)
        return model, lambda: model(batch)["loss"]

    if trained.device.type == "meta":
        need = on_meta.pretext_need(stage, trained, count, len(ids), split)
    else:
        need = whole_need(trained, build, rows=count, row_tokens=one.encoder)
    passes = [read.passes(stage) for read in reads]
    share = float(np.mean(passes)) / (count * one.passes(stage))
    tokens = float(np.mean([read.encoder for read in reads]))
    return Step(need.bytes, tokens, share * need.flops, share * need.seconds)


@dataclass(frozen=True)
class Reads:
    """The tokens that a batch of stage 1 is read as, padding included.

    Attributes:
        encoder: that the encoder reads.
        student: that the frozen model reads after memory, with the memory.
        teacher: that it reads without memory, and without gradients.
    """

    encoder: int
    student: int
    teacher: int

    @classmethod
    def of(cls, stage: Pretext, trained: Trained, batch: Sequence[tuple[int, int]]) -> "Reads":
        """Count the tokens.

        Args:
            stage: the stage.
            trained: what the run trains.
            batch: tokens of each passage, and of its text.
        """
        objective, specials = objective_of(stage), trained.specials
        texts = [specials + text for _, text in batch]
        encoder, student, teacher = _bucketed(texts, trained), 0, 0
        if issubclass(objective, EmbeddingPrediction):
            encoder *= 2  # with each of its two prompts
        if issubclass(objective, MaskedNextTokenPrediction):
            encoder = len(texts) * max(texts)  # in one piece, also on a processor
        if issubclass(objective, Compression):
            same = issubclass(objective, Reconstruction)
            wanted = [text if same else length - text for length, text in batch]
            student = _bucketed([specials + tokens for tokens in wanted], trained)
        if issubclass(objective, Distillation):
            teacher = _bucketed([1 + length for length, _ in batch], trained)
        return cls(encoder, student, teacher)

    @property
    def kept(self) -> int:
        """The tokens whose activations are kept for gradients."""
        return self.encoder + self.student

    def passes(self, stage: Pretext) -> int:
        """Return how often a token goes through the model, forwards or backwards.

        Weights are frozen, so the backward pass costs about what the forward pass does.
        """
        return (3 if stage.gradient_checkpointing else 2) * self.kept + self.teacher


def _bucketed(lengths: list[int], trained: Trained) -> int:
    """Return the tokens of texts that are padded as `map_length_buckets` does it."""
    if trained.device.type != "cpu":
        return len(lengths) * max(lengths)
    buckets = batch_by_tokens(np.array(lengths), TOKENS_AT_ONCE)
    return sum(len(bucket) * lengths[bucket[0]] for bucket in buckets)


def contrastive_step(stage: Contrastive, trained: Trained, data: DatasetDict) -> Step:
    """Return what a step of stage 2 or 3 needs.

    The loss itself needs next to nothing beside the texts. A batch that is cut into mini-batches
    is encoded once more, without gradients (GradCache). A batch with scores or a teacher is in
    memory at once. With `matryoshka_tokens` and bidirectional attention, a text is read once for
    each number of memory tokens. A guide is not counted.
    With `reading`, what reads memory is counted beside the texts.

    Args:
        stage: the stage.
        trained: what the run trains.
        data: its rows by source, as `llm2comp.data.drawn.pair_file` writes them.
    """
    named = zip(dataset_names(stage.data), stage.data, strict=True)
    taught = {name for name, source in named if source.teacher}
    sources = [
        _Source(stage, trained, part, scored=SCORE in part.column_names or name in taught)
        for name, part in data.items()
    ]
    largest = max(sources, key=lambda source: source.in_memory * source.longest)
    rows, length = largest.in_memory, largest.longest

    def build(layers: int, count: int) -> tuple[nn.Module, Callable[[], Tensor]]:
        return _encoder_step(stage, trained, layers, count, length)

    def need(*, backward: bool) -> Need:
        if trained.device.type == "meta":
            return on_meta.contrastive_need(stage, trained, rows, length, backward=backward)
        return whole_need(trained, build, rows=rows, row_tokens=length, backward=backward)

    both = need(backward=True)
    forward = need(backward=False) if any(source.cached for source in sources) else None
    tokens = flops = seconds = 0.0
    total = sum(source.rows for source in sources)
    for source in sources:
        share = source.rows / total
        step_tokens = source.tokens_of_step()
        times = step_tokens / (rows * length)
        passes = [both, forward] if source.cached and forward is not None else [both]
        tokens += share * step_tokens
        flops += share * times * sum(need.flops for need in passes)
        seconds += share * times * sum(need.seconds for need in passes)
    step = Step(both.bytes, tokens, flops, seconds)
    if isinstance(stage, Supervised) and stage.reading is not None:
        return step.beside(reading_step(stage, trained, data, partial(_encoder, stage, trained)))
    return step


def _encoder_step(
    stage: Contrastive, trained: Trained, layers: int, count: int, length: int
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return a body of few layers, and what reads so many texts of so many tokens.

    Pooling and loss need next to nothing beside it.
    """
    body = _encoder(stage, trained, layers)
    ids = torch.zeros(count, length, dtype=torch.long, device=trained.device)
    mask = torch.ones_like(ids)
    return body, lambda: body(ids, attention_mask=mask).last_hidden_state.float().sum()


def _encoder(stage: Contrastive, trained: Trained, layers: int) -> PreTrainedModel:
    """Return a body of few layers, as stage 2 or 3 trains it."""
    body, _ = trained.of_layers(layers, head=False)
    if trained.lineage.method is not None:
        record_attention(body.config, causal=_is_causal(stage, trained))
    dropout = stage.attention_dropout if isinstance(stage, Unsupervised) else 0.0
    for name, value in dropout_settings(body.config, dropout).items():
        setattr(body.config, name, value)
    body.requires_grad_(stage.lora is None)
    if stage.lora is not None:
        add_adapter(body, stage.lora, trained.memory_embeddings)
    if stage.gradient_checkpointing:
        body.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]
    body.train()
    return body


def _is_causal(stage: Contrastive, trained: Trained) -> bool:
    """Return whether the attention of the encoder is causal in a stage."""
    before = trained.lineage.stages
    causal = not before or before[-1].causal is not False
    for one in trained.recipe.stages:
        if one.attention is not None:
            causal = one.attention == "causal"
        if one.stage == stage.stage:
            break
        if isinstance(one, Pretext) and one.bidirectional_from_step is not None:
            causal = False
    return causal


class _Source:
    """The rows of one source, and how a batch of them is in memory.

    Args:
        stage: the stage.
        trained: what the run trains.
        part: the rows.
        scored: whether a batch is in memory at once.

    Attributes:
        rows: their number.
        cached: whether a batch is cut into mini-batches.
        longest: tokens of the longest text.
        in_memory: texts in memory at once.
    """

    def __init__(
        self, stage: Contrastive, trained: Trained, part: Dataset, *, scored: bool
    ) -> None:
        self.rows = len(part)
        self._batch, longest = stage.batch_size, trained.longest_text(stage.max_length)
        self._columns = [
            [_lengths(texts_of(value), trained, longest) for value in part[name]]
            for name in COLUMNS
            if name in part.column_names
        ]
        counts = [len(texts) for column in self._columns for texts in column]
        tokens, most = stage.mini_batch_tokens, max(counts)
        nested = stage.matryoshka_tokens
        passes = len(nested) if nested and not _is_causal(stage, trained) else 1
        self._columns = [[row * passes for row in column] for column in self._columns]
        small = stage.batch_size * most * passes <= stage.mini_batch_size
        self.cached = not scored and (tokens is not None or not small)
        self.longest = max(length for column in self._columns for row in column for length in row)
        if not self.cached:
            row = max(sum(map(len, row)) for row in zip(*self._columns, strict=True))
            self.in_memory = stage.batch_size * row
        elif tokens is None:
            self.in_memory = stage.mini_batch_size
        else:
            self.in_memory = max(1, min(stage.mini_batch_size, tokens // self.longest))

    def tokens_of_step(self) -> float:
        """Return the tokens of a batch on average, padding included.

        Too few rows for a batch stand for the rows of a whole one.
        """
        size = self.in_memory if self.cached else None
        batches = []
        for start in range(0, max(1, self.rows - self._batch + 1), self._batch):
            rows = [column[start : start + self._batch] for column in self._columns]
            tokens = sum(_padded([n for row in column for n in row], size) for column in rows)
            batches.append(tokens * self._batch / len(rows[0]))
        return float(np.mean(batches))


def _lengths(texts: Sequence[str], trained: Trained, longest: int) -> list[int]:
    """Return the tokens of texts, with those around them."""
    if not texts:
        return []
    ids = trained.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [trained.specials + min(len(one), longest) for one in ids]


def _padded(lengths: list[int], size: int | None) -> int:
    """Return the tokens of texts that are padded in mini-batches of similar length."""
    ordered = sorted(lengths, reverse=True)
    size = size or len(ordered) or 1
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return sum(len(part) * part[0] for part in parts)
