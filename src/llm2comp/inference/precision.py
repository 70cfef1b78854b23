"""bfloat16 where it is fast and changes little: checked once per model, and cached."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel

from llm2comp.data.hub import cached_model
from llm2comp.errors import UserError
from llm2comp.inference.embed import embed
from llm2comp.inference.vector_format import Embeddings, smallest_cosine
from llm2comp.utils.checksums import CALIBRATION
from llm2comp.utils.files import atomic_file, cache_dir
from llm2comp.utils.hardware import compute_dtype, native_bfloat16

logger = logging.getLogger(__name__)

SMALLEST_COSINE = 0.999
"""bfloat16 is accepted if the two embeddings of every sample text agree to this cosine."""
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
"""Lengths of the sample texts."""


def sample_texts() -> list[str]:
    """Return 16 texts, the same on every machine.

    Their lengths are those of `CHARACTERS`: from one word to more than an encoder usually reads.
    """
    count = len(SENTENCES)
    rotations = (" ".join(SENTENCES[i % count :] + SENTENCES[: i % count]) for i in range(16))
    return [
        (f"{text} " * (length // len(text) + 1))[:length].strip()
        for text, length in zip(rotations, CHARACTERS, strict=True)
    ]


class HalfPrecisionError(UserError):
    """The embeddings of an encoder in half precision are not those that were saved with it.

    Args:
        message: as of any error.
        cosine: the smallest, between the two.
    """

    def __init__(self, message: str, cosine: float) -> None:
        super().__init__(message)
        self.cosine = cosine


def load_checked(
    name: str, wanted: str, load: Callable[[torch.dtype], SentenceTransformer], source: str
) -> SentenceTransformer:
    """Load a model in a precision, and log in one line which precision it is and why.

    `auto` is bfloat16 where the processor has it natively and the model's embeddings of the sample
    texts stay within a cosine of 0.999 of those in float32. The first call checks this, for which
    it loads the model in float32 too. The result of the check is cached for the model's files and
    the version of torch. A model that is not a transformer is float32, whatever is wanted.

    Args:
        name: of the model, for the log and the cache.
        wanted: `float32`, `bfloat16` or `auto`.
        load: returns the model in a dtype, or raises `HalfPrecisionError`.
        source: the model's folder or hub id.

    Raises:
        UserError: if the check finds embeddings that are not finite in float32.
    """
    if wanted != "auto" or not native_bfloat16():
        dtype = compute_dtype(wanted)
        reason = "as asked" if wanted != "auto" else "bfloat16 is not native here"
        model = load(dtype)  # before the log line, so that an error is the only line that is shown
        if _keeps_float32(name, model):
            return model
        logger.info("%s: %s, %s", name, str(dtype).removeprefix("torch."), reason)
        return model
    cosine, checked = _read_check(name, source), None
    if cosine is None:
        # Load twice: converting a loaded model would also round buffers that must stay float32.
        # The first copy is freed before the second is loaded.
        model = load(torch.float32)
        if _keeps_float32(name, model):
            return model
        exact = _embed_samples(model)
        del model
        if not np.isfinite(exact).all():
            raise UserError(
                f"{name}: its embeddings are not finite in float32, so its weights are broken; "
                "a training that diverges leaves such a model"
            )
        try:
            checked = load(torch.bfloat16)
            cosine = smallest_cosine(exact, _embed_samples(checked))
        except HalfPrecisionError as error:  # in float32 they are those that were saved
            cosine = error.cosine
        _write_check(name, source, cosine)
    if cosine >= SMALLEST_COSINE:
        model = checked if checked is not None else load(torch.bfloat16)
        line = "%s: bfloat16, smallest cosine to float32 %.5f on %d texts"
    else:
        del checked
        model = load(torch.float32)
        line = "%s: float32, bfloat16 would fall to a cosine of %.5f on one of %d texts"
    logger.info(line, name, cosine, len(CHARACTERS))
    return model


def _keeps_float32(name: str, model: SentenceTransformer) -> bool:
    """Return whether a model is float32 in any case, and log it: static and word embeddings are."""
    if any(isinstance(module, PreTrainedModel) for module in model.modules()):
        return False
    logger.info("%s: float32, because it is not a transformer", name)
    return True


def _embed_samples(model: SentenceTransformer) -> Embeddings:
    return embed(model, sample_texts(), batch_size=32)


def identity(about: list[object], source: str) -> str | None:
    """Return a hash of a model's files; None if the model is not on this machine.

    Args:
        about: what else the hash depends on.
        source: the model's folder or hub id.
    """
    folder = Path(source) if Path(source).is_dir() else cached_model(source)
    if folder is None:
        return None
    files = [
        (str(file), file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(folder.resolve().rglob("*"))
        if file.is_file() and file.name != CALIBRATION
    ]
    return hashlib.sha256(json.dumps([*about, files]).encode()).hexdigest()[:16]


def _check_file(name: str, source: str) -> Path | None:
    """Return the file that caches a model's check; None if the model is not on this machine."""
    key = identity([name, torch.__version__, sample_texts()], source)
    return None if key is None else cache_dir() / "precision" / f"{key}.json"


def _read_check(name: str, source: str) -> float | None:
    """Return the cached cosine; None if there is none or it cannot be read."""
    file = _check_file(name, source)
    with suppress(OSError, ValueError, KeyError):  # then the model is checked again
        if file is not None:
            return float(json.loads(file.read_text(encoding="utf-8"))["smallest_cosine"])
    return None


def _write_check(name: str, source: str, cosine: float) -> None:
    """Cache a cosine."""
    file = _check_file(name, source)
    with suppress(OSError):  # without a cache the next load takes longer, nothing else
        if file is not None:
            with atomic_file(file) as partial:
                content = json.dumps({"model": name, "smallest_cosine": cosine})
                partial.write_text(content + "\n", encoding="utf-8")


@contextmanager
def computing_in(model: SentenceTransformer, dtype: torch.dtype) -> Iterator[None]:
    """Let an encoder compute in a precision, within a block, and nothing but the encoder.

    What is made of its embeddings stays float32. In bfloat16 many cosines would be equal, and which
    of the equal ones comes first would decide a score, or which text is a negative.

    Args:
        model: the encoder; its weights keep their type.
        dtype: of autocast; float32 changes nothing.
    """
    forward, own = model.forward, vars(model).get("forward")  # accelerate may have set its own

    def forward_in_precision(*args: Any, **options: Any) -> Any:
        with torch.autocast(model.device.type, dtype, enabled=dtype == torch.bfloat16):
            return forward(*args, **options)

    model.forward = forward_in_precision  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own  # type: ignore[method-assign]
