"""bfloat16 where it is fast and changes little: checked once a model, and kept in the cache."""

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from llm2comp.data.hub import cached_model
from llm2comp.inference.embed import embed
from llm2comp.inference.embedding_files import Embeddings
from llm2comp.utils.files import atomic_file, cache_dir
from llm2comp.utils.hardware import compute_dtype, native_bfloat16

logger = logging.getLogger(__name__)

SMALLEST = 0.999
"""Cosine between the two vectors of a text, from which on bfloat16 is as good as float32."""
SENTENCES = (
    "Whales breathe air, and feed their young with milk.",
    "In 1969 two men walked on the Moon for two and a half hours, and brought back 21.5 kg of it.",
    "def mean(values): return sum(values) / len(values)",
    "Zwei Cafés in Zürich öffnen erst um 9:30 Uhr.",
    "Interest rates were left unchanged, as most economists had expected.",
    "今日は天気がいいので、公園まで歩きました。",
    "My order #4471 has not come; please tell me where it is, or give me my money back!",
    "The enzyme's activity fell by 40 % at pH 5.2 (p < 0.01), which agrees with earlier reports.",
)
CHARACTERS = (4, 10, 20, 30, 40, 50, 65, 80, 100, 130, 170, 240, 350, 600, 1000, 3000)


def sample_texts() -> list[str]:
    """Return 16 texts, of one word to more than a model reads, the same on every machine."""
    count = len(SENTENCES)
    turned = (" ".join(SENTENCES[i % count :] + SENTENCES[: i % count]) for i in range(16))
    return [
        (f"{text} " * (length // len(text) + 1))[:length].strip()
        for text, length in zip(turned, CHARACTERS, strict=True)
    ]


def load_checked(
    name: str, wanted: str, load: Callable[[torch.dtype], SentenceTransformer], source: str
) -> SentenceTransformer:
    """Load a model in the precision asked for, and log in one line which it is and why.

    ``auto`` is bfloat16 where the processor has it and the model's vectors of the sample texts
    are within a cosine of 0.999 of float32's. The first call finds that out, which takes a load
    in float32; its outcome is kept for the model's files and this version of torch.

    Args:
        name: of the model, for the log and for the outcome.
        wanted: ``float32``, ``bfloat16`` or ``auto``.
        load: returns the model in a precision.
        source: its folder or hub id.
    """
    if wanted != "auto" or not native_bfloat16():
        dtype = compute_dtype(wanted)
        reason = "as asked" if wanted != "auto" else "bfloat16 is not native here"
        model = load(dtype)  # first, so that an error is the only line that is shown
        logger.info("%s: %s, %s", name, str(dtype).removeprefix("torch."), reason)
        return model
    cosine, checked = _kept(name, source), None
    if cosine is None:
        # Loaded twice: to convert the one would round buffers that stay float32 when loaded.
        # The first is gone before the second comes.
        exact = _vectors(load(torch.float32))
        checked = load(torch.bfloat16)
        cosine = _smallest_cosine(exact, _vectors(checked))
        _keep(name, source, cosine)
    if cosine >= SMALLEST:
        model = checked if checked is not None else load(torch.bfloat16)
        said = "%s: bfloat16, smallest cosine to float32 %.5f on %d texts"
    else:
        del checked
        model = load(torch.float32)
        said = "%s: float32, bfloat16 would fall to a cosine of %.5f on one of %d texts"
    logger.info(said, name, cosine, len(CHARACTERS))
    return model


def _vectors(model: SentenceTransformer) -> Embeddings:
    return embed(model, sample_texts(), batch_size=32)


def _smallest_cosine(one: Embeddings, other: Embeddings) -> float:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(1) / lengths).min())


def _outcome(name: str, source: str) -> Path | None:
    """Return the file of a model's outcome; None as long as its files are not on this machine."""
    folder = Path(source) if Path(source).is_dir() else cached_model(source)
    if folder is None:
        return None
    files = [
        (str(file), file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(folder.resolve().rglob("*"))
        if file.is_file()
    ]
    about = [name, files, torch.__version__, sample_texts()]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    return cache_dir() / "precision" / f"{key}.json"


def _kept(name: str, source: str) -> float | None:
    file = _outcome(name, source)
    with suppress(OSError, ValueError, KeyError):  # it is found out again
        if file is not None:
            return float(json.loads(file.read_text(encoding="utf-8"))["smallest_cosine"])
    return None


def _keep(name: str, source: str, cosine: float) -> None:
    file = _outcome(name, source)
    with suppress(OSError):  # a cache that cannot be written costs time, no more
        if file is not None:
            with atomic_file(file) as partial_file:
                content = json.dumps({"model": name, "smallest_cosine": cosine})
                partial_file.write_text(content + "\n", encoding="utf-8")
