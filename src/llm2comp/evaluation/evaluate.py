"""Score encoders and training-free baselines on tasks: the work of `llm2comp evaluate`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mteb.abstasks import AbsTask
from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines as training_free
from llm2comp.evaluation import runner, suites
from llm2comp.evaluation.own_data.tasks import OwnData
from llm2comp.evaluation.store import ResultStore, Score
from llm2comp.inference.load import load, model_names, trusted
from llm2comp.model import released
from llm2comp.model.lineage import Lineage
from llm2comp.utils.choices import Precision, Suite
from llm2comp.utils.files import require_folder


@dataclass(frozen=True)
class Encoders:
    """The encoders to score, and how they are loaded.

    Attributes:
        models: names or folders, as `llm2comp.load` takes them.
        baselines: keys of `llm2comp.evaluation.baselines.BASELINES`.
        backbone: causal language model of the baselines, as a recipe names it.
        dtype: precision, as in `llm2comp.load`.
        merge_threshold: as in `llm2comp.load`; for the models only.

    Raises:
        UserError: if there is nothing to score, or nothing to merge.
    """

    models: Sequence[str | Path]
    baselines: Sequence[str]
    backbone: str
    dtype: Precision
    merge_threshold: float | None

    def __post_init__(self) -> None:
        if not self.models and not self.baselines:
            raise UserError("name a model, or a baseline, to evaluate")
        if self.merge_threshold is not None and not self.models:
            raise UserError("only encoders with memory tokens can merge them; name such a model")

    def rows(
        self, *, instructed: bool
    ) -> Iterator[tuple[str, Callable[[], SentenceTransformer], Lineage | None]]:
        """Yield the name of each row, a function that loads its encoder, and its lineage."""
        for name in self.baselines:
            build = partial(
                training_free.load_baseline,
                name,
                self.backbone,
                self.dtype,
                trust_remote_code=trusted(),
            )
            yield training_free.row_name(name, self.backbone), build, None
        for name in model_names(self.models):
            row = row_name(name, self.merge_threshold, instructed=instructed)
            yield (
                row,
                partial(load, name, self.dtype, self.merge_threshold),
                released.lineage_of(name),
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
) -> dict[str, list[Score]]:
    """Score encoders on tasks and store the results.

    Args:
        encoders: the encoders to score.
        tasks: the tasks to score them on.
        results: where results are stored, and taken from if they are there.
        batch_size: number of texts of 64 tokens per batch; it changes speed, not scores.
        again: compute scores again even if they are stored.

    Returns:
        One score per task, by the name of the row: baselines first, then models.

    Raises:
        UserError: if a name is unknown, or data or models are not available, or
            results cannot be stored.
    """
    require_folder(results.folder)
    tasks.make()  # a wrong name is reported before an encoder is loaded
    paper = {name: task.instruction for name, task in suites.paper_tasks().items()}
    instructions = paper if tasks.instructions else None
    scores: dict[str, list[Score]] = {}
    for name, load_encoder, lineage in encoders.rows(instructed=tasks.instructions):
        scores[name] = runner.evaluate(
            load_encoder(),
            name,
            tasks.make(),
            results,
            batch_size,
            again=again,
            instructions=instructions,
            lineage=lineage,
        )
    return scores


def row_name(model: str, merge_threshold: float | None = None, *, instructed: bool = False) -> str:
    """Return the name of a model in tables and stored results, with how it was evaluated."""
    merged = "" if merge_threshold is None else f", merged at {merge_threshold:g}"
    return model + merged + (", instructed" if instructed else "")
