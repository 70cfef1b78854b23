"""Score an encoder at many sizes of its vectors; its texts are encoded once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mteb.abstasks import AbsTask
from sentence_transformers import SentenceTransformer

from llm2comp.evaluation import runner, store
from llm2comp.evaluation.store import ResultStore, Score
from llm2comp.evaluation.stored import StoredAs
from llm2comp.inference.calibration import vector_format
from llm2comp.inference.vector_format import VectorFormat, require_dim
from llm2comp.model.lineage import Lineage
from llm2comp.utils.choices import EmbeddingPrecision

PRECISIONS: Sequence[EmbeddingPrecision] = ("float32", "float16", "int8", "binary")
"""The precisions of the table. uint8 has the scores of int8."""
HALVINGS = 4
"""Without Matryoshka training, the dimensions are all, a half, a quarter and an eighth."""


def formats(
    model: SentenceTransformer, lineage: Lineage | None, name: str | None
) -> list[VectorFormat]:
    """Return the formats to compare, the largest vectors first.

    Args:
        model: the model.
        lineage: of the model. The dimensions are those of its Matryoshka training, if it had one.
        name: under which the sample is kept, see `llm2comp.inference.calibration.vector_format`.
    """
    whole = require_dim(model, None)
    trained = [dim for dim in lineage.matryoshka if dim < whole] if lineage else []
    dims = trained or [max(1, whole // 2**halving) for halving in range(HALVINGS)]
    chosen = [
        vector_format(model, dim, precision, name)
        for dim in sorted({whole, *dims}, reverse=True)
        for precision in PRECISIONS
    ]
    return sorted(chosen, key=lambda vectors: -vectors.bytes)


def size_name(name: str, vectors: VectorFormat) -> str:
    """Return the name of a row in tables and results."""
    return f"{name}, {vectors.dim} x {vectors.precision}"


def evaluate_sizes(
    model: SentenceTransformer,
    name: str,
    make_tasks: Callable[[], Sequence[AbsTask]],
    wanted: Sequence[VectorFormat],
    results: ResultStore,
    batch_size: int = 32,
    *,
    again: bool = False,
    instructions: Mapping[str, str] | None = None,
    lineage: Lineage | None = None,
) -> dict[str, list[Score]]:
    """Score a model on tasks in several formats, one task after the other.

    The whole embeddings of one task are in memory.

    Args:
        model: any sentence-transformers model.
        name: name of the model; the results are stored under `size_name`.
        make_tasks: returns new tasks.
        wanted: the formats.
        results: as in `llm2comp.evaluation.runner.evaluate`, and so the other arguments.
        batch_size: number of texts of 64 tokens per batch.
        again: compute scores again even if they are stored.
        instructions: by task, the instruction before queries.
        lineage: lineage of the encoder.

    Returns:
        One score per task, by `size_name`.
    """
    options: dict[str, Any] = {"again": again, "instructions": instructions, "lineage": lineage}
    fingerprint = store.fingerprint(model)
    scores: dict[str, list[Score]] = {size_name(name, vectors): [] for vectors in wanted}
    for number in range(len(make_tasks())):
        stored_as = [StoredAs(vectors, fingerprint) for vectors in wanted]
        for one in stored_as:
            one.whole = stored_as[0].whole
            row = size_name(name, one.vectors)
            task = make_tasks()[number]
            scores[row] += runner.evaluate(
                model, row, [task], results, batch_size, stored_as=one, **options
            )
    return scores
