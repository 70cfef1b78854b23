"""Measurements on held-out passages: what memory says of its text, and how embeddings spread."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from llm2comp.evaluation.metrics.spectrum import RowSums, spectrum
from llm2comp.model.causal_lm.parts import token_table
from llm2comp.model.compressor import Compressor
from llm2comp.training.monitoring.divergence import DivergenceError
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.objective import Compression, Objective

TOKENS = 64
"""A held-out passage is cut to its first 64 tokens: 48 are compressed, 16 are predicted."""
COMPRESSED_SHARE = 0.75
"""Share of a passage's tokens that is compressed, unless the objective reads the whole passage."""
BATCH = 16
"""Held-out texts per batch."""


@dataclass(frozen=True)
class Directions:
    """How held-out embeddings use their space.

    `llm2comp.evaluation.metrics.spectrum.Spectrum` defines the measures.

    Attributes:
        rankme: effective dimension of the embeddings; their mean is not subtracted.
        participation_ratio: effective dimension of their variance.
        text_cosine: mean cosine between the embeddings of different texts.
    """

    rankme: float
    participation_ratio: float
    text_cosine: float

    @classmethod
    def of(cls, embeddings: Tensor) -> "Directions":
        """Measure embeddings `(texts, dimension)`, which need not have unit length.

        Raises:
            DivergenceError: if an embedding is not finite, or zero because the model's final norm
                overflowed.
        """
        if not (embeddings.isfinite().all() and embeddings.any(-1).all()):
            raise DivergenceError("an embedding of the held-out texts is zero or not finite")
        unit = normalize(embeddings.float(), dim=-1).cpu().numpy()
        measured = spectrum(RowSums.of([unit]))
        return cls(measured.rankme, measured.participation_ratio, measured.mean_cosine)


@dataclass(frozen=True)
class HeldOut:
    """Measurements of an objective that compresses. Losses are in nats per token.

    Attributes:
        matched: loss with the text's own memory.
        mismatched: loss with the memory of another text.
        zeroed: loss with memory set to zero.
        last_tokens: loss with the token embeddings of the text's last k tokens instead of memory.
        gap: `mismatched - matched`, the information that memory carries about its text.
        token_cosine: mean cosine between the k memory tokens of a text.
        text_cosine: mean cosine between the embeddings of different texts.
        rankme: effective dimension of the embeddings, at most their number.
        participation_ratio: effective dimension of the embeddings' variance.
    """

    matched: float
    mismatched: float
    zeroed: float
    last_tokens: float
    gap: float
    token_cosine: float
    text_cosine: float
    rankme: float
    participation_ratio: float

    def as_dict(self) -> dict[str, float]:
        """Return the measurements by name, rounded for a log line."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def cut(
    passages: list[list[int]], *, whole_passage: bool = False
) -> tuple[list[list[int]], list[int]]:
    """Cut held-out passages to their first 64 tokens.

    Args:
        passages: token ids.
        whole_passage: whether the objective reads the whole passage.

    Returns:
        The passages, and for each the number of tokens that are compressed: three quarters, or
        all.
    """
    short = [passage[:TOKENS] for passage in passages]
    if whole_passage:
        return short, [len(passage) for passage in short]
    return short, [max(1, int(COMPRESSED_SHARE * len(passage))) for passage in short]


@torch.no_grad()
def measure(compressor: Compressor, objective: Compression, batches: list[Batch]) -> HeldOut:
    """Measure an objective that compresses.

    Args:
        compressor: the model.
        objective: gives the loss from any memory.
        batches: at least two passages each, because a text needs the memory of another.
    """
    with _evaluating(compressor):
        measured = [_measure(compressor, objective, batch) for batch in batches]
    rows = [values for values, _ in measured]
    matched, mismatched, zeroed, last, tokens = _mean(rows, batches).tolist()
    directions = Directions.of(torch.cat([embeddings for _, embeddings in measured]))
    return HeldOut(
        matched=matched,
        mismatched=mismatched,
        zeroed=zeroed,
        last_tokens=last,
        gap=mismatched - matched,
        token_cosine=tokens,
        **asdict(directions),
    )


@torch.no_grad()
def measure_loss(
    compressor: Compressor, objective: Objective, batches: list[Batch]
) -> dict[str, float]:
    """Measure an objective that does not predict from memory.

    A fixed seed makes random choices, such as masks, the same at every measurement.

    Args:
        compressor: the model.
        objective: what it is trained on.
        batches: held-out passages.

    Returns:
        `loss` in nats per token, the attributes of `Directions` and, if the encoder pools over
        memory tokens, `token_cosine` as in `HeldOut`.
    """
    with _evaluating(compressor), torch.random.fork_rng():
        torch.manual_seed(0)
        losses = [objective.loss(compressor, batch).float().cpu() for batch in batches]
        outputs = [
            outputs.float() for batch in batches for outputs in objective.pooled(compressor, batch)
        ]
    directions = Directions.of(torch.stack([of_text.mean(0) for of_text in outputs]))
    values = {"loss": _mean(losses, batches).item(), **asdict(directions)}
    if objective.format().pooling == "memory":
        values["token_cosine"] = mean_cosine(torch.stack(outputs)).mean().item()
    return values


def mean_cosine(vectors: Tensor) -> Tensor:
    """Return the mean cosine between different vectors.

    Args:
        vectors: `(…, n, hidden)`.

    Returns:
        `(…)`; 1 if n is 1.
    """
    n = vectors.shape[-2]
    if n == 1:
        return torch.ones(vectors.shape[:-2])
    unit = normalize(vectors, dim=-1)
    return (unit.sum(-2).square().sum(-1) - n) / (n * (n - 1))


@contextmanager
def _evaluating(compressor: Compressor) -> Iterator[None]:
    """Switch dropout off within the block."""
    training = compressor.training
    compressor.eval()
    yield
    compressor.train(training)


def _mean(rows: list[Tensor], batches: list[Batch]) -> Tensor:
    """Average over batches, each weighted by the number of its passages."""
    sizes = torch.tensor([float(len(batch.input_ids)) for batch in batches])
    return (torch.stack(rows, dim=-1) * sizes).sum(-1) / sizes.sum()


def _measure(compressor: Compressor, objective: Compression, batch: Batch) -> tuple[Tensor, Tensor]:
    """Measure one batch.

    Returns:
        Five numbers: the losses `matched`, `mismatched`, `zeroed` and `last_tokens`, and
        `token_cosine`. Then the embeddings `(batch, hidden)`.
    """
    memory = torch.stack(list(objective.pooled(compressor, batch)))
    matched = compressor.as_input(memory)
    mismatched = matched.roll(1, dims=0)
    inputs = (matched, mismatched, torch.zeros_like(matched), _last_tokens(compressor, batch))
    losses = [objective.loss_from_memory(compressor, each, batch).float() for each in inputs]
    token_cosine = mean_cosine(memory.float()).mean()
    return torch.stack([*losses, token_cosine]).cpu(), memory.float().mean(1)


def _last_tokens(compressor: Compressor, batch: Batch) -> Tensor:
    """Return the token embeddings `(batch, k, hidden)` of each text's last k tokens."""
    ends = batch.text_mask.sum(1, keepdim=True)
    k = compressor.num_memory_embeddings
    positions = ends - k + torch.arange(k, device=ends.device)
    ids = batch.text_ids.gather(1, positions.clamp(min=0))
    embeddings: Tensor = token_table(compressor.body)(ids)
    return embeddings
