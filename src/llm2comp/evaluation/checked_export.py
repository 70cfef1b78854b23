"""Compile an encoder for ONNX Runtime or OpenVINO, and check that it computes the same.

Exporters trace a model. A trace may silently ignore something that depends on the input or on the
configuration: the padding, the attention of a bidirectional encoder, or a batch of one text. So
every export is loaded and compared with its encoder before its folder appears.
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
from llm2comp.inference.last_token import Difference
from llm2comp.inference.load import load
from llm2comp.inference.vector_format import require_dim, smallest_cosine
from llm2comp.model import released
from llm2comp.model.attention import use_sdpa
from llm2comp.model.encoder import encoder_body
from llm2comp.model.folder import reference
from llm2comp.model.folder.card import model_card
from llm2comp.model.folder.layout import NEW_CLIENTS, write_layout
from llm2comp.model.lineage import Compiled, Lineage
from llm2comp.model.loading.tokenizer import FILE
from llm2comp.model.matryoshka.first_tokens import lineage_with, plain_tokenizer
from llm2comp.model.modules import keep_dimensions
from llm2comp.utils.choices import Backend
from llm2comp.utils.files import atomic_folder, require_folder

BATCH = 32
TEXTS = 2 * BATCH + 1
"""Two batches with padding and one text alone, because a trace may work for only one of them."""
DIFFERENCE, DIFFERENCE_INT8 = 1e-3, 1e-2
"""Largest cosine distance that is allowed. smollm2-135m-llm2comp has 1.3e-4 in bfloat16, which
OpenVINO prefers, and 2.8e-3 with 8-bit weights."""
LOSS = 1.0
"""Number of STSBenchmark points that an export may lose."""


@dataclass(frozen=True)
class Check(Difference):
    """How much a compiled encoder differs from its encoder in PyTorch and float32.

    Attributes:
        before: STSBenchmark score of the encoder, in percent.
        after: STSBenchmark score of the export, in percent.
    """

    before: float
    after: float

    def __str__(self) -> str:
        return (
            f"{super().__str__()}, STSBenchmark {self.before:.2f} before and "
            f"{self.after:.2f} after (a loss of {LOSS:g} allowed)"
        )

    @property
    def passed(self) -> bool:
        """Whether both differences are allowed; NaN is not."""
        return super().passed and self.before - self.after <= LOSS


def export(
    name: str,
    to: Backend,
    out: Path,
    *,
    int8: bool = False,
    dim: int | None = None,
    memory_tokens: int | None = None,
) -> Check:
    """Write an encoder folder with a compiled body and without PyTorch weights.

    Args:
        name: encoder, as `llm2comp.load` takes it.
        to: runtime to compile for. `SentenceTransformer(out, backend=to)` loads the folder.
        out: folder to write. It appears only if the export passes the check.
        int8: store the weights in 8 bits.
        dim: number of leading dimensions to keep, scaled to unit length; None keeps all.
        memory_tokens: as `llm2comp.load` takes it.

    Returns:
        The differences that the check found.

    Raises:
        UserError: if the encoder cannot be loaded, its embeddings have fewer dimensions, the
            runtime is not installed, `out` holds something else, or the export differs too much.
    """
    compiled.require(to)
    if out.exists() and not compiled.backend_of(out):
        raise UserError(f"{out} exists and is not an export; choose another --out")
    require_folder(out)
    source = Path(released.resolve_encoder(name))
    if compiled.backend_of(source):
        raise UserError(f"{name} is compiled already; name the encoder that it was made from")
    encoder = load(name, "float32", memory_tokens=memory_tokens).to("cpu")
    if not isinstance(encoder[0], Transformer):
        raise UserError(f"{name} cannot be compiled, because its first module is not a transformer")
    lineage = released.lineage_of(name)
    if lineage is not None:
        lineage = lineage_with(lineage, encoder, memory_tokens)
    if dim is not None:
        keep_dimensions(encoder, require_dim(encoder, dim))
        if lineage is not None:
            truncated = reference.Reference.of(reference.embed_alone(encoder))
            lineage = lineage.model_copy(update={"reference": truncated})
    texts = _texts()
    # Under the encoder's name are the scores of whole embeddings.
    scores = ResultStore() if (dim, memory_tokens) == (None, None) else None
    expected, before = embed(encoder, texts, BATCH), _score(encoder, name, scores, lineage)
    use_sdpa(encoder_body(encoder))
    encoder[0].model = compiled.Graph(compiled.compile_body(encoder, texts, to, int8), to)
    with atomic_folder(out) as partial:
        encoder.save_pretrained(str(partial), create_model_card=False)
        ours = lineage is not None and lineage.method is not None
        needed = write_layout(partial, compiled=True) if ours else NEW_CLIENTS
        loaded = compiled.load(partial)
        parts = [embed(loaded, part, BATCH) for part in (texts[:-1], texts[-1:])]
        check = Check(
            difference=1 - smallest_cosine(expected, np.concatenate(parts)),
            allowed=DIFFERENCE_INT8 if int8 else DIFFERENCE,
            before=before,
            after=_score(loaded, str(out)),
        )
        if not check.passed:
            raise UserError(
                f"{out} is not written, because it does not encode like {name}: {check}; "
                f"try {'without --int8, or ' if int8 else ''}the other runtime"
            )
        if lineage is not None:
            compiled_as = Compiled.model_validate({"to": to, "int8": int8, **asdict(check)})
            lineage = lineage.model_copy(update={"compiled": compiled_as, "dtype": None})
            lineage.write(partial)
            plain = plain_tokenizer(encoder, source)
            plain.save(str(partial / FILE))
            card = model_card(lineage, expected.shape[1], needed)
            (partial / "README.md").write_text(card, encoding="utf-8")
    return check


def _texts() -> list[str]:
    """Return passages of rising length, from 20 characters on, and the texts of the reference."""
    passages = sample.draw("boolq-passages", TEXTS - len(reference.TEXTS), seed=0).texts
    cut = [passage[: 20 * length] for length, passage in enumerate(passages, 1)]
    return [*cut, *reference.TEXTS]


def _score(
    encoder: SentenceTransformer,
    name: str,
    results: ResultStore | None = None,
    lineage: Lineage | None = None,
) -> float:
    tasks = suites.tasks(["STSBenchmark"])
    (score,) = runner.evaluate(encoder, name, tasks, results, lineage=lineage)
    return score.main_score
