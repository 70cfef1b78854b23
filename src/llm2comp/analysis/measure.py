"""All measures of one encoder on a sample of texts, or of the embeddings in a file."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from llm2comp.data.sample import Sample
from llm2comp.errors import UserError, counted
from llm2comp.evaluation.metrics import memory_tokens, neighbours
from llm2comp.evaluation.metrics.memory_tokens import MemoryTokens
from llm2comp.evaluation.metrics.spectrum import RowSums, Spectrum, spectrum
from llm2comp.inference.embed import embed
from llm2comp.inference.memory_states import collect_memory_states
from llm2comp.utils.files import atomic_file
from llm2comp.utils.progress import text_progress, track_texts

CHUNK = 8192
"""Number of embeddings that are added to the sums at a time."""
PAIRWISE = 5000
"""Maximum number of embeddings that are compared with each other. Of more, a sample is taken."""

Embeddings = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Analysis:
    """The measures of one encoder, whose embeddings are scaled to unit length.

    Attributes:
        model: name of the encoder.
        data: description of the texts.
        n: number of embeddings.
        dimension: dimension of the embeddings.
        spectrum: see `llm2comp.evaluation.metrics.spectrum.Spectrum`.
        alignment: see `llm2comp.evaluation.metrics.neighbours.alignment`; `None` without pairs.
        uniformity: see `llm2comp.evaluation.metrics.neighbours.uniformity`.
        hubness: see `llm2comp.evaluation.metrics.neighbours.hubness`.
        compared: number of embeddings that uniformity and hubness are computed from. If it is less
            than `n`, they are a random sample with a fixed seed.
        memory: measures of the memory tokens before pooling; `None` if the model has none.
        seconds: time of encoding and measuring.
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
        """Write the analysis as JSON, completely or not at all."""
        with atomic_file(file) as partial:
            text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Encoded:
    """The embeddings of a sample.

    Attributes:
        embeddings: embeddings of the texts, `(texts, dimension)`.
        positives: embeddings of their positives, `(texts, dimension)`; `None` without pairs.
        memory: measures of the memory tokens; `None` if the encoder has none.
    """

    embeddings: Embeddings
    positives: Embeddings | None
    memory: MemoryTokens | None


def encode(model: SentenceTransformer, name: str, sample: Sample, batch_size: int = 32) -> Encoded:
    """Encode a sample with a progress bar, and measure the memory tokens at the same time.

    Args:
        model: any sentence-transformers model.
        name: name on the progress bar.
        sample: texts or pairs. Of pairs, anchors are encoded as queries and positives as documents.
        batch_size: number of texts of 64 tokens per batch; it changes speed, not embeddings.
    """
    states: list[npt.NDArray[np.floating]] = []
    with text_progress() as progress:
        bar = progress.add_task(name, total=len(sample.texts) + len(sample.positives))
        with track_texts(model, progress, bar), collect_memory_states(model, states):
            prompt = "query" if sample.positives else None
            embeddings = embed(model, sample.texts, batch_size, prompt)
            positives = embed(model, sample.positives, batch_size, "document") if prompt else None
    return Encoded(embeddings, positives, memory_tokens.measure(states) if states else None)


def analyze_model(
    model: SentenceTransformer, name: str, sample: Sample, batch_size: int = 32
) -> Analysis:
    """Encode a sample, as `encode` does, and measure its embeddings.

    Raises:
        UserError: if there are fewer than two texts, or an embedding is not finite.
    """
    start = perf_counter()
    encoded = encode(model, name, sample, batch_size)
    return measure(name, sample.note, encoded, start)


def analyze_embeddings(file: Path, name: str) -> Analysis:
    """Measure the rows of a `.npy` file, which is read chunk by chunk.

    Args:
        file: the file, with floats of shape `(rows, dimension)`.
        name: name in the analysis.

    Raises:
        UserError: if it is not such an array, has fewer than two rows, or a row is not finite.
    """
    start = perf_counter()
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file} is not a NumPy array: {error}") from error
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.floating):
        raise UserError(f"{file} holds {rows.dtype} of shape {rows.shape}, not rows of floats")
    note = f"{counted(len(rows), 'embedding')} of {file.name}"
    return measure(name, note, Encoded(rows, None, None), start)


def measure(name: str, data: str, encoded: Encoded, start: float) -> Analysis:
    """Measure embeddings.

    Args:
        name: name of the encoder in the analysis.
        data: description of the texts.
        encoded: embeddings of the texts.
        start: value of `time.perf_counter` when the encoding began.

    Raises:
        UserError: if there are fewer than two embeddings, or one is not finite.
    """
    embeddings, positives = encoded.embeddings, encoded.positives
    n, dimension = embeddings.shape
    if n < 2:
        raise UserError(f"{name}: the number of embeddings is {n}; the measures need at least two")
    sums = RowSums.of(_unit(embeddings[i : i + CHUNK], name) for i in range(0, n, CHUNK))
    drawn = np.sort(np.random.default_rng(0).permutation(n)[:PAIRWISE])
    compared = _unit(embeddings[drawn], name)
    return Analysis(
        model=name,
        data=data,
        n=n,
        dimension=dimension,
        spectrum=spectrum(sums),
        alignment=None
        if positives is None
        else neighbours.alignment(_unit(embeddings, name), _unit(positives, name)),
        uniformity=neighbours.uniformity(compared),
        hubness=neighbours.hubness(compared),
        compared=len(compared),
        memory=encoded.memory,
        seconds=perf_counter() - start,
    )


def _unit(rows: Embeddings, name: str) -> Embeddings:
    """Return the rows scaled to unit length. A row of zeros stays zero."""
    # In half precision a length has eleven bits, and cosines are ties.
    rows = np.asarray(rows, dtype=np.promote_types(rows.dtype, np.float32))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise UserError(f"{name}: an embedding is not finite; load the model in float32")
    return np.asarray(rows / np.where(norms > 0, norms, 1))
