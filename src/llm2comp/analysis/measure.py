"""All measures of one encoder, on a sample of texts, or on vectors that are there already."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from llm2comp.data.sample import Sample
from llm2comp.errors import UserError
from llm2comp.evaluation.metrics import memory_tokens, neighbours
from llm2comp.evaluation.metrics.memory_tokens import MemoryTokens
from llm2comp.evaluation.metrics.spectrum import RowSums, Spectrum, spectrum
from llm2comp.inference.embed import embed
from llm2comp.inference.memory_states import collect_memory_states
from llm2comp.utils.files import atomic_file
from llm2comp.utils.progress import text_progress, track_texts

CHUNK = 8192
PAIRWISE = 5000
"""Embeddings, at most, for the measures that compare all with all; more are sampled."""

Embeddings = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Analysis:
    """What was found out about one encoder's vectors, scaled to unit length.

    Attributes:
        model: what it is called.
        data: what it read, in words.
        n: number of vectors.
        dimension: of a vector.
        spectrum: see :class:`.spectrum.Spectrum`.
        alignment: of positive pairs; None without pairs.
        uniformity: see :func:`.neighbours.uniformity`.
        hubness: see :func:`.neighbours.hubness`.
        compared: number of vectors of the last two, drawn by a seed if fewer than ``n``.
        memory: of the memory tokens before pooling; None if the model has none.
        seconds: encoding and measuring.
    """

    model: str
    data: str
    n: int
    dimension: int
    spectrum: Spectrum
    alignment: float | None
    uniformity: float
    hubness: float
    compared: int
    memory: MemoryTokens | None
    seconds: float

    def write(self, file: Path) -> None:
        """Write it as JSON, whole or not at all."""
        with atomic_file(file) as partial:
            text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Encoded:
    """A sample as an encoder sees it.

    Attributes:
        vectors: of the texts, ``(texts, dimension)`` float32.
        positives: of their positives; None if the sample has no pairs.
        memory: of the memory tokens; None if the encoder has none.
    """

    vectors: Embeddings
    positives: Embeddings | None
    memory: MemoryTokens | None


def encode(model: SentenceTransformer, name: str, sample: Sample, batch_size: int = 32) -> Encoded:
    """Encode a sample with a progress bar, and look at its memory tokens on the way.

    Args:
        model: any sentence-transformers model.
        name: of the progress bar.
        sample: of :func:`.sample.draw`; anchors are encoded as queries, positives as documents.
        batch_size: texts of 64 tokens at once; it changes speed, not vectors.
    """
    states: list[npt.NDArray[np.floating]] = []
    with text_progress() as progress:
        bar = progress.add_task(name, total=len(sample.texts) + len(sample.positives))
        with track_texts(model, progress, bar), collect_memory_states(model, states):
            asked = "query" if sample.positives else None
            vectors = embed(model, sample.texts, batch_size, asked)
            pairs = embed(model, sample.positives, batch_size, "document") if asked else None
    return Encoded(vectors, pairs, memory_tokens.measure(states) if states else None)


def analyze_model(
    model: SentenceTransformer, name: str, sample: Sample, batch_size: int = 32
) -> Analysis:
    """Encode a sample, as :func:`encode` does, and measure its vectors.

    Raises:
        UserError: if there are fewer than two texts, or a vector is not finite.
    """
    start = perf_counter()
    encoded = encode(model, name, sample, batch_size)
    return measure(name, sample.note, encoded, start)


def analyze_embeddings(file: Path, name: str) -> Analysis:
    """Measure the rows of a ``.npy`` file, which is read piece by piece.

    Args:
        file: of the array.
        name: how the analysis calls it.

    Raises:
        UserError: if it is no array of at least two rows of numbers.
    """
    start = perf_counter()
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is no array of numpy: {error}") from error
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.floating):
        raise UserError(f"{file} holds {rows.dtype} of shape {rows.shape}, not rows of floats")
    note = f"{len(rows):,} vectors of {file.name}"
    return measure(name, note, Encoded(rows, None, None), start)


def measure(name: str, data: str, encoded: Encoded, start: float) -> Analysis:
    """Measure vectors.

    Args:
        name: how the analysis calls the encoder.
        data: what it read, in words.
        encoded: of :func:`encode`.
        start: of the clock ``time.perf_counter``.

    Raises:
        UserError: if there are fewer than two vectors, or one is not finite.
    """
    vectors, positives = encoded.vectors, encoded.positives
    n, dimension = vectors.shape
    if n < 2:
        raise UserError(f"{name}: {n} vectors; a spectrum needs at least two")
    sums = RowSums.of(_unit(vectors[i : i + CHUNK], name) for i in range(0, n, CHUNK))
    chosen = np.sort(np.random.default_rng(0).permutation(n)[:PAIRWISE])
    compared = _unit(vectors[chosen], name)
    return Analysis(
        model=name,
        data=data,
        n=n,
        dimension=dimension,
        spectrum=spectrum(sums),
        alignment=None
        if positives is None
        else neighbours.alignment(_unit(vectors, name), _unit(positives, name)),
        uniformity=neighbours.uniformity(compared),
        hubness=neighbours.hubness(compared),
        compared=len(compared),
        memory=encoded.memory,
        seconds=perf_counter() - start,
    )


def _unit(rows: Embeddings, name: str) -> Embeddings:
    """Return rows of unit length; a row of zeros stays."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise UserError(f"{name}: a vector is not finite; load the model in float32")
    return np.asarray(rows / np.where(norms > 0, norms, 1))
