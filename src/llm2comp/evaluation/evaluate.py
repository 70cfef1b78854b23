"""Score encoders and training-free baselines on tasks: the work of `llm2comp evaluate`."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mteb.abstasks import AbsTask
from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines as training_free
from llm2comp.evaluation import late_interaction, runner, sizes, suites
from llm2comp.evaluation.own_data.tasks import OwnData
from llm2comp.evaluation.store import ResultStore, Score
from llm2comp.inference.calibration import vector_format
from llm2comp.inference.load import load, model_names, trusted
from llm2comp.inference.vector_format import VectorFormat, require_precision, require_vectors
from llm2comp.model import released
from llm2comp.model.lineage import Lineage
from llm2comp.model.multi_vector.memory_vectors import append_memory_vectors
from llm2comp.utils.choices import EmbeddingPrecision, Precision, Suite, VectorCount
from llm2comp.utils.files import require_folder

MERGED = ", merged at "
"""What the name of a row has after that of the model if memory tokens are merged."""
MANY_VECTORS = ", k vectors"
"""What it has if its k memory vectors are scored."""
FIRST_TOKENS = "@{} tokens"
"""What it has if only so many memory tokens are appended."""
CHANGED_MEMORY = re.compile(rf"{MERGED}|{MANY_VECTORS}|{FIRST_TOKENS.format('[0-9]+')}")
"""What the name of a row has if what is scored is not the one embedding of the encoder as it is."""


@dataclass(frozen=True)
class Row:
    """An encoder to score.

    Attributes:
        name: in tables and results.
        load: loads it.
        lineage: returns how it was made, or None for an encoder of others. That of a hub id is
            known once it is loaded.
        source: name under which the sample for int8 is kept; None if it is not kept.
    """

    name: str
    load: Callable[[], SentenceTransformer]
    lineage: Callable[[], Lineage | None] = lambda: None
    source: str | None = None


@dataclass(frozen=True)
class Vectors:
    """How embeddings are stored before they are scored.

    Attributes:
        dim: number of leading dimensions to keep; None keeps all.
        precision: of the stored numbers.
        sizes: score the whole table of sizes.

    Raises:
        UserError: if one size is named, and the table too.
    """

    dim: int | None = None
    precision: EmbeddingPrecision = "float32"
    sizes: bool = False

    def __post_init__(self) -> None:
        require_precision(self.precision)
        if self.sizes and (self.dim, self.precision) != (None, "float32"):
            raise UserError("sizes has all dimensions and precisions; leave out dim and precision")

    def formats(self, model: SentenceTransformer, row: Row) -> list[VectorFormat]:
        """Return the formats to score; none for whole embeddings in float32."""
        if self.sizes:
            return sizes.formats(model, row.lineage(), row.source)
        if (self.dim, self.precision) == (None, "float32"):
            return []
        return [vector_format(model, self.dim, self.precision, row.source)]


@dataclass(frozen=True)
class Encoders:
    """The encoders to score, and how they are loaded.

    Attributes:
        models: names or folders, as `llm2comp.load` takes them.
        baselines: keys of `llm2comp.evaluation.baselines.BASELINES`.
        backbone: causal language model of the baselines, as a recipe names it.
        dtype: precision, as in `llm2comp.load`.
        merge_threshold: as in `llm2comp.load`; for the models only.
        vectors: `k` scores the k memory vectors of a text, and not its embedding.
        memory_tokens: as in `llm2comp.load`; for the models only.

    Raises:
        UserError: if there is nothing to score, or nothing to merge or to choose.
    """

    models: Sequence[str | Path]
    baselines: Sequence[str]
    backbone: str
    dtype: Precision
    merge_threshold: float | None
    vectors: VectorCount = "one"
    memory_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.models and not self.baselines:
            raise UserError("name a model, or a baseline, to evaluate")
        if self.merge_threshold is not None and not self.models:
            raise UserError("only encoders with memory tokens can merge them; name such a model")
        if self.memory_tokens is not None and not self.models:
            raise UserError("memory_tokens is for encoders that have such; name such a model")
        require_vectors(self.vectors)

    def rows(self, *, instructed: bool) -> Iterator[Row]:
        """Yield the encoders in the order of the table: baselines first, then models."""
        rows = self._rows(instructed=instructed)
        yield from rows if self.vectors == "one" else map(_with_vectors, rows)

    def _rows(self, *, instructed: bool) -> Iterator[Row]:
        for name in self.baselines:
            build = partial(
                training_free.load_baseline,
                name,
                self.backbone,
                self.dtype,
                trust_remote_code=trusted(),
            )
            yield Row(training_free.row_name(name, self.backbone), build)
        changes = (self.merge_threshold, self.memory_tokens)
        for name in model_names(self.models):
            yield Row(
                row_name(name, *changes, instructed=instructed),
                partial(
                    load, name, self.dtype, self.merge_threshold, memory_tokens=self.memory_tokens
                ),
                partial(released.lineage_of, name),
                name if changes == (None, None) else None,
            )


@dataclass(frozen=True)
class Tasks:
    """The tasks to score on.

    Attributes:
        suite: a suite of tasks.
        names: names of tasks instead of the suite; `None` takes the suite.
        quick: take the smaller versions of the tasks.
        instructions: put the paper's instruction for each task before queries.
        data: files or folders of one's own, in place of the suite or beside the named tasks.
    """

    suite: Suite
    names: Sequence[str] | None
    quick: bool
    instructions: bool
    data: Sequence[OwnData] = ()

    def make(self) -> list[AbsTask]:
        """Return new tasks.

        Raises:
            UserError: if a name is unknown, or a task has no quick version.
        """
        own = [data.task() for data in self.data]
        if own and self.names is None:
            return own
        return [*suites.choose(self.suite, self.names, quick=self.quick), *own]


def evaluate(
    encoders: Encoders,
    tasks: Tasks,
    results: ResultStore,
    batch_size: int = 32,
    *,
    again: bool = False,
    vectors: Vectors | None = None,
) -> dict[str, list[Score]]:
    """Score encoders on tasks and store the results.

    Args:
        encoders: the encoders to score.
        tasks: the tasks to score them on.
        results: where results are stored, and taken from if they are there.
        batch_size: number of texts of 64 tokens per batch; it changes speed, not scores.
        again: compute scores again even if they are stored.
        vectors: how embeddings are stored; None scores whole embeddings in float32.

    Returns:
        One score per task, by the name of the row: baselines first, then models. With `vectors`,
        an encoder has one row per size.

    Raises:
        UserError: if a name is unknown, or data or models are not available, or
            results cannot be stored.
    """
    require_folder(results.folder)

    def make() -> list[AbsTask]:
        new = tasks.make()
        return new if encoders.vectors == "one" else late_interaction.with_max_sim(new)

    made = tasks.make()  # a wrong name is reported before an encoder is loaded
    if encoders.vectors == "k":
        if vectors is not None and vectors != Vectors():
            raise UserError("dim, precision and sizes are for one vector per text; leave them out")
        late_interaction.require_tasks(made, named=tasks.names is not None)
    paper = {name: task.instruction for name, task in suites.paper_tasks().items()}
    instructions = paper if tasks.instructions else None
    scores: dict[str, list[Score]] = {}
    for row in encoders.rows(instructed=tasks.instructions):
        model = row.load()
        formats = vectors.formats(model, row) if vectors else []
        options: dict[str, Any] = {
            "again": again,
            "instructions": instructions,
            "lineage": row.lineage(),
        }
        if formats:
            scores |= sizes.evaluate_sizes(
                model, row.name, make, formats, results, batch_size, **options
            )
        else:
            scores[row.name] = runner.evaluate(
                model, row.name, make(), results, batch_size, **options
            )
    return scores


def _with_vectors(row: Row) -> Row:
    """Return the same encoder with its k memory vectors in the place of its embedding."""
    return replace(
        row,
        name=f"{row.name}{MANY_VECTORS}",
        load=lambda: append_memory_vectors(row.load(), row.name),
    )


def row_name(
    model: str,
    merge_threshold: float | None = None,
    memory_tokens: int | None = None,
    *,
    instructed: bool = False,
) -> str:
    """Return the name of a model in tables and stored results, with how it was evaluated."""
    tokens = "" if memory_tokens is None else FIRST_TOKENS.format(memory_tokens)
    merged = "" if merge_threshold is None else f"{MERGED}{merge_threshold:g}"
    return model + tokens + merged + (", instructed" if instructed else "")
