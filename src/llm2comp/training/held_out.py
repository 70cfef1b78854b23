"""Held-out passages: does memory carry its own text, and do embeddings keep their directions?"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from llm2comp.evaluation.metrics.spectrum import RowSums, spectrum
from llm2comp.model.backbone import token_table
from llm2comp.model.compressor import Compressor
from llm2comp.training.objectives.batch import Batch
from llm2comp.training.objectives.objective import Compression, Objective

TOKENS = 64
"""Held-out passages are judged on their first 64 tokens: 48 compressed, 16 predicted."""
KEPT = 0.75
BATCH = 16


@dataclass(frozen=True)
class HeldOut:
    """Measurements of a compressor on held-out passages, losses in nats per token.

    Attributes:
        own: loss with the text's own memory.
        other: loss with the memory of another text.
        zeroed: loss with memory set to zero.
        last_tokens: loss with the embeddings of the text's last k tokens in place of memory.
        gap: ``other - own``, the information that memory carries.
        token_cosine: mean cosine between the k memory tokens of a text.
        text_cosine: mean cosine between the embeddings of different texts.
        rankme: effective dimension of the embeddings, see :class:`.Directions`; at most their
            number.
        participation_ratio: the same, of their variance.
    """

    own: float
    other: float
    zeroed: float
    last_tokens: float
    gap: float
    token_cosine: float
    text_cosine: float
    rankme: float
    participation_ratio: float

    def as_dict(self) -> dict[str, float]:
        """Return the measurements rounded for a log line."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def cut(passages: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Cut held-out passages to their first 64 tokens and split them at three quarters."""
    short = [passage[:TOKENS] for passage in passages]
    return short, [max(1, int(KEPT * len(passage))) for passage in short]


@torch.no_grad()
def measure(compressor: Compressor, objective: Compression, batches: list[Batch]) -> HeldOut:
    """Measure own, other's and zeroed memory over batches of at least two passages each."""
    with _evaluating(compressor):
        measured = [_measure(compressor, objective, batch) for batch in batches]
    rows = [values for values, _ in measured]
    own, other, zeroed, last, tokens = _mean(rows, batches).tolist()
    directions = Directions.of(torch.cat([embeddings for _, embeddings in measured]))
    return HeldOut(
        own=own,
        other=other,
        zeroed=zeroed,
        last_tokens=last,
        gap=other - own,
        token_cosine=tokens,
        **asdict(directions),
    )


@torch.no_grad()
def measure_loss(
    compressor: Compressor, objective: Objective, batches: list[Batch]
) -> dict[str, float]:
    """Measure an objective that does not go on from memory.

    What it draws at random is the same each time.

    Returns:
        ``loss`` in nats per token, what :class:`.Directions` holds, and, if its encoder pools
        over memory tokens, ``token_cosine`` as in :class:`HeldOut`.
    """
    with _evaluating(compressor), torch.random.fork_rng():
        torch.manual_seed(0)
        losses = [objective.loss(compressor, batch).float().cpu() for batch in batches]
        pooled = [one.float() for b in batches for one in objective.pooled(compressor, b)]
    directions = Directions.of(torch.stack([outputs.mean(0) for outputs in pooled]))
    values = {"loss": _mean(losses, batches).item(), **asdict(directions)}
    if objective.format().pooling == "memory":
        values["token_cosine"] = mean_cosine(torch.stack(pooled)).mean().item()
    return values


@contextmanager
def _evaluating(compressor: Compressor) -> Iterator[None]:
    training = compressor.training
    compressor.eval()
    yield
    compressor.train(training)


def _mean(rows: list[Tensor], batches: list[Batch]) -> Tensor:
    """Average over batches, by the number of their passages."""
    sizes = torch.tensor([float(len(batch.input_ids)) for batch in batches])
    return (torch.stack(rows, dim=-1) * sizes).sum(-1) / sizes.sum()


def _measure(compressor: Compressor, objective: Compression, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return five numbers of a batch, and its embeddings ``(batch, hidden)``."""
    memory = torch.stack(list(objective.pooled(compressor, batch)))
    last = _last_tokens(compressor, batch)
    own = compressor.as_input(memory)
    given = (own, own.roll(1, dims=0), torch.zeros_like(own), last)
    losses = [objective.loss_from_memory(compressor, which, batch).float() for which in given]
    tokens = mean_cosine(memory.float()).mean()
    return torch.stack([*losses, tokens]).cpu(), memory.float().mean(1)


def _last_tokens(compressor: Compressor, batch: Batch) -> Tensor:
    """Return the embeddings ``(batch, k, hidden)`` of each text's last k tokens."""
    ends = batch.text_mask.sum(1, keepdim=True)
    k = compressor.num_memory_embeddings
    places = ends - k + torch.arange(k, device=ends.device)
    ids = batch.text_ids.gather(1, places.clamp(min=0))
    embeddings: Tensor = token_table(compressor.body)(ids)
    return embeddings


def mean_cosine(vectors: Tensor) -> Tensor:
    """Return the mean cosine between different vectors of ``(…, n, hidden)``; 1 if n is 1."""
    n = vectors.shape[-2]
    if n == 1:
        return torch.ones(vectors.shape[:-2])
    unit = normalize(vectors, dim=-1)
    return (unit.sum(-2).square().sum(-1) - n) / (n * (n - 1))


@dataclass(frozen=True)
class Directions:
    """How held-out vectors use their space; see :class:`llm2comp.analysis.spectrum.Spectrum`.

    Attributes:
        rankme: effective dimension, the mean's direction included.
        participation_ratio: effective dimension of the variance.
        text_cosine: mean cosine between texts.
    """

    rankme: float
    participation_ratio: float
    text_cosine: float

    @classmethod
    def of(cls, vectors: Tensor) -> "Directions":
        """Measure vectors ``(texts, hidden)`` of any length."""
        unit = normalize(vectors.float(), dim=-1).cpu().numpy()
        found = spectrum(RowSums.of([unit]))
        return cls(found.rankme, found.participation_ratio, found.mean_cosine)
