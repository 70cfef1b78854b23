"""Encodes with the trained small encoder: the same embeddings as a processor's, and how fast."""

import random

import harness
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from gpucheck import texts
from gpucheck.device import device
from gpucheck.rows import Found, NotRunError, Recorder
from gpucheck.workshop import SEED, Workshop
from llm2comp.inference.load import load_in
from llm2comp.training.run_folder import MODEL

COMPARED = 32
"""Texts whose embeddings are compared."""
SAME, SAME_IN_HALF = 1e-4, 1e-3
"""Largest cosine distance to float32 on the processor, in float32 and in bfloat16."""
WORDS = {"short texts": 10, "long texts": 350}
LARGER = 16
"""How many times the default `batch_size` is tried too. The default suits a processor's cache."""


def encoding(workshop: Workshop, record: Recorder) -> None:
    """Compare embeddings with those of the processor, and times with those of the stock library."""
    half = torch.bfloat16
    record.check("float32, GPU as processor", _equal, workshop, torch.float32, SAME)
    record.check("bfloat16 as float32 on the processor", _equal, workshop, half, SAME_IN_HALF)
    for (kind, words), count in zip(WORDS.items(), workshop.sizes.encoded, strict=True):
        record.check(f"{kind}, speed", _speed, workshop, words, count)


def _folder(workshop: Workshop) -> str:
    """Return the folder of a trained encoder.

    Raises:
        NotRunError: if no run ended.
    """
    for name in ("bfloat16", "float32", "flash"):
        if (workshop.folder / name / MODEL).exists():
            return str(workshop.folder / name / MODEL)
    raise NotRunError("no run ended with an encoder")


def _equal(workshop: Workshop, dtype: torch.dtype, limit: float) -> Found:
    folder = _folder(workshop)
    generator = random.Random(SEED)
    some = [texts.passage(generator, 10 * (1 + place % 6)) for place in range(COMPARED)]
    processor = SentenceTransformer(
        folder, device="cpu", model_kwargs={"dtype": torch.float32}
    ).encode(some, show_progress_bar=False)
    here = np.asarray(load_in(folder, dtype).encode(some), dtype=np.float32)
    distance = float(cosine_distances(here, processor).max())
    return Found(
        f"cosine distance at most {distance:.1e}",
        passed=distance <= limit,
        limit=f"{limit:g}",
        numbers={"distance": distance},
    )


def cosine_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return `(rows,)`, one minus the cosine of each row of `first` and that of `second`."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return 1 - (first * second).sum(1) / norms


def _speed(workshop: Workshop, words: int, count: int) -> Found:
    folder = _folder(workshop)
    generator = random.Random(SEED)
    some = [texts.passage(generator, words) for _ in range(count)]
    ours = load_in(folder, torch.bfloat16)
    stock = SentenceTransformer(
        folder, device=device().type, model_kwargs={"dtype": torch.bfloat16}
    )
    for model in (ours, stock):
        model.max_seq_length = 512
    seconds = harness.in_turn(
        {
            "llm2comp": lambda: ours.encode(some),
            "larger": lambda: ours.encode(some, batch_size=32 * LARGER),
            "stock": lambda: stock.encode(some, show_progress_bar=False),
        },
        workshop.sizes.rounds,
    )
    rates = {name: count / taken for name, taken in seconds.items()}
    default, larger = (rates[name] / rates["stock"] for name in ("llm2comp", "larger"))
    return Found(
        f"{rates['llm2comp']:,.0f} texts/s, stock {rates['stock']:,.0f}, ratio {default:.2f}; with "
        f"batch_size={32 * LARGER} {rates['larger']:,.0f}, ratio {larger:.2f}",
        numbers=rates | {"ratio": default, "ratio of larger batches": larger},
    )
