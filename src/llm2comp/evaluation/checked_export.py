"""Compile an encoder for ONNX Runtime or OpenVINO, and refuse what does not compute the same.

Exporters trace a model. A trace can lose what depends on the input or on the
configuration, silently: padding, the attention of a bidirectional encoder, a batch
of one. So every export is loaded and compared before its folder appears.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer

from llm2comp.data import sample
from llm2comp.errors import UserError
from llm2comp.evaluation import runner, suites
from llm2comp.evaluation.store import ResultStore
from llm2comp.inference import compiled
from llm2comp.inference.embed import embed
from llm2comp.inference.load import load
from llm2comp.inference.precision import smallest_cosine
from llm2comp.model import released
from llm2comp.model.attention import use_sdpa
from llm2comp.model.encoder import encoder_body
from llm2comp.model.lineage import Compiled
from llm2comp.model.model_card import model_card
from llm2comp.utils.choices import Backend
from llm2comp.utils.files import atomic_folder

BATCH = 32
TEXTS = 2 * BATCH + 1
"""Batches with padding, and the last text alone: an exporter may take either for the rule."""
DIFFERENCE, DIFFERENCE_INT8 = 1e-3, 1e-2
"""Largest cosine distance allowed: several times that of bfloat16, which OpenVINO prefers, and of
8-bit weights on smollm2-135m-llm2comp (1.3e-4 and 2.8e-3)."""
LOSS = 1.0
"""Points of STSBenchmark that an export may lose."""


@dataclass(frozen=True)
class Check:
    """How an export differs from its encoder in PyTorch and float32.

    Attributes:
        difference: largest cosine distance between the two vectors of a text.
        allowed: the largest that is taken for rounding.
        before: the encoder's STSBenchmark.
        after: the export's.
    """

    difference: float
    allowed: float
    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"largest cosine difference {self.difference:.1e} ({self.allowed:g} allowed), "
            f"STSBenchmark {self.before:.2f} before and {self.after:.2f} after "
            f"(a loss of {LOSS:g} allowed)"
        )

    @property
    def passed(self) -> bool:
        """Whether both are within bounds; NaN is not."""
        return self.difference <= self.allowed and self.before - self.after <= LOSS


def export(name: str, to: Backend, out: Path, *, int8: bool = False) -> Check:
    """Write an encoder folder whose body is compiled, without its PyTorch weights.

    Args:
        name: encoder, as :func:`llm2comp.inference.load.load` takes it.
        to: back end; ``SentenceTransformer(out, backend=to)`` is to load the folder.
        out: folder; it appears only if the export passes its check.
        int8: keep the weights in 8 bits.

    Raises:
        UserError: if the encoder cannot be loaded, the back end is not installed, ``out``
            holds something else, or the export differs too much.
    """
    compiled.require(to)
    if compiled.backend_of(Path(name)):
        raise UserError(f"{name} is compiled; name the encoder that it was made of")
    if out.exists() and not compiled.backend_of(out):
        raise UserError(f"{out} exists and is no export; name another --out")
    encoder = load(name, "float32").to("cpu")
    if not isinstance(encoder[0], Transformer):
        raise UserError(f"{name} does not begin with a transformer; it cannot be compiled")
    texts = _texts()
    vectors, before = embed(encoder, texts, BATCH), _score(encoder, name, ResultStore())
    width = vectors.shape[1]
    use_sdpa(encoder_body(encoder))
    encoder[0].model = compiled.Graph(compiled.compile_body(encoder, texts, to, int8), to)
    with atomic_folder(out) as partial:
        encoder.save_pretrained(str(partial), create_model_card=False)
        compiled.use_old_class_names(partial)
        loaded = compiled.load(partial)
        parts = [embed(loaded, part, BATCH) for part in (texts[:-1], texts[-1:])]
        check = Check(
            difference=1 - smallest_cosine(vectors, np.concatenate(parts)),
            allowed=DIFFERENCE_INT8 if int8 else DIFFERENCE,
            before=before,
            after=_score(loaded, str(out)),
        )
        if not check.passed:
            raise UserError(
                f"{out} is not written, it would not encode as {name} does: {check}; "
                f"try {'without --int8, or ' if int8 else ''}the other back end"
            )
        lineage = released.lineage_of(name)
        if lineage is not None:
            compiled_as = Compiled.model_validate({"to": to, "int8": int8, **asdict(check)})
            lineage = lineage.model_copy(update={"compiled": compiled_as})
            lineage.write(partial)
            (partial / "README.md").write_text(model_card(lineage, width), encoding="utf-8")
    return check


def _texts() -> list[str]:
    """Return real passages, the first a word or two, each longer than the one before."""
    passages = sample.draw("boolq-passages", TEXTS, seed=0).texts
    return [passage[: 20 * length] for length, passage in enumerate(passages, 1)]


def _score(encoder: SentenceTransformer, name: str, results: ResultStore | None = None) -> float:
    (score,) = runner.evaluate(encoder, name, suites.tasks(["STSBenchmark"]), results)
    return score.main_score
