"""The ranges of int8 and uint8: measured on a sample of texts, which is kept with the encoder.

All files of an encoder then have the same ranges, on every machine that has its folder, so that
their vectors can be put into one index.
"""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from llm2comp.data import sample
from llm2comp.inference.embed import embed
from llm2comp.inference.precision import identity
from llm2comp.inference.vector_format import (
    CALIBRATED,
    Embeddings,
    VectorFormat,
    require_dim,
    require_precision,
    truncate,
)
from llm2comp.model import released
from llm2comp.model.lineage import LINEAGE
from llm2comp.utils.checksums import CALIBRATION
from llm2comp.utils.choices import EmbeddingPrecision
from llm2comp.utils.files import atomic_file, cache_dir

SOURCE = "boolq-passages"
TEXTS = 256
CHARACTERS = 20
"""The texts are cut to 1, 2, ... 20 times this length, because people search short texts too."""


def vector_format(
    model: SentenceTransformer,
    dim: int | None,
    precision: EmbeddingPrecision,
    name: str | None = None,
) -> VectorFormat:
    """Return the format for the embeddings of a model, with the ranges that it needs.

    Args:
        model: the model.
        dim: number of leading dimensions to keep; None keeps all.
        precision: of the stored numbers.
        name: of the model, as `llm2comp.load` takes it. With None the sample is not kept.

    Raises:
        UserError: if the embeddings have fewer dimensions, the precision is unknown, or the sample
            cannot be downloaded.
    """
    require_precision(precision)
    kept = require_dim(model, dim)
    if precision not in CALIBRATED:
        return VectorFormat(kept, precision)
    source = None if name is None else str(released.local_encoder(name) or name)
    embeddings = truncate(calibration(model, source), kept)
    ranges = np.stack([embeddings.min(axis=0), embeddings.max(axis=0)])
    return VectorFormat(kept, precision, ranges)


def calibration(model: SentenceTransformer, source: str | None) -> Embeddings:
    """Return the embeddings of the sample, `(TEXTS, dimension)`, and keep them.

    They are in `calibration.npy` of the encoder's folder. For a model of others and a folder that
    cannot be written, they are in the user's cache.
    """
    whole = require_dim(model, None)
    places = [] if source is None else _places(source)
    for file in places:
        with suppress(OSError, ValueError, EOFError):  # then it is made again
            kept: Embeddings = np.load(file, allow_pickle=False)
            if kept.shape == (TEXTS, whole) and np.isfinite(kept).all():
                return kept
    texts = sample.draw(SOURCE, TEXTS, seed=0).texts
    cut = [text[: CHARACTERS * (1 + row % 20)] for row, text in enumerate(texts)]
    embeddings = embed(model, cut, 32, "document")
    for file in places:
        with suppress(OSError):  # the next place is tried
            with atomic_file(file) as partial, partial.open("wb") as stream:
                np.save(stream, embeddings)
            break
    return embeddings


def _places(source: str) -> list[Path]:
    """Return the files that may keep a model's sample, the best first."""
    folder, places = Path(source), []
    if (folder / LINEAGE).is_file() and os.access(folder, os.W_OK | os.R_OK):
        places.append(folder / CALIBRATION)
    key = identity([source], source)
    if key is not None:
        places.append(cache_dir() / "calibration" / f"{key}.npy")
    return places
