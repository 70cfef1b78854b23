"""Score a model on tasks with `mteb.evaluate`, and store the results."""

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import mteb
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.results import TaskResult as MtebResult
from rich.progress import Progress
from sentence_transformers import SentenceTransformer

from llm2comp.errors import BrokenModelError, NoScoreError, counted
from llm2comp.evaluation import intervals, store, suites
from llm2comp.evaluation.instructed import InstructedEncoder
from llm2comp.evaluation.late_interaction import LateInteractionEncoder
from llm2comp.evaluation.store import ResultStore, Score, TaskResult
from llm2comp.evaluation.stored import StoredAs, StoredEncoder
from llm2comp.inference.vector_format import VectorFormat, require_dim
from llm2comp.model.lineage import Lineage
from llm2comp.model.multi_vector.max_sim import MaxSim
from llm2comp.model.multi_vector.memory_vectors import MemoryVectors
from llm2comp.utils.progress import text_progress, track_texts

logger = logging.getLogger(__name__)


@dataclass
class _Plan:
    """One task of a call: its instruction, how embeddings are stored, its key and its score."""

    task: AbsTask
    instruction: str
    stored_as: StoredAs | None
    key: str = ""
    score: Score | None = None

    @property
    def quick(self) -> bool:
        return getattr(self.task, "quick", False)


def evaluate(
    model: SentenceTransformer,
    name: str,
    tasks: Sequence[AbsTask],
    results: ResultStore | None = None,
    batch_size: int = 32,
    *,
    again: bool = False,
    instructions: Mapping[str, str] | None = None,
    lineage: Lineage | None = None,
    stored_as: StoredAs | None = None,
) -> list[Score]:
    """Score a model on tasks, with a progress bar over their texts.

    Retrieval tasks without an instruction use the `query` and `document` prompts of the model, if
    it has them. The stored result contains the instruction and the prompts.

    Args:
        model: any sentence-transformers model.
        name: name of the model in the results.
        tasks: tasks from `llm2comp.evaluation.suites`. They must be new, because tasks of mteb
            change while they run.
        results: where results are stored. A stored result is used if the model, the task and the
            instruction are the same. `None` stores nothing.
        batch_size: number of texts of 64 tokens per batch; it changes speed, not scores.
        again: compute scores again even if they are stored.
        instructions: by task, the instruction before queries. It replaces the model's prompts.
        lineage: lineage of the encoder, which is stored with its results.
        stored_as: how the embeddings are stored; None scores whole embeddings.

    Returns:
        One score per task, in the order of the tasks.

    Raises:
        UserError: if the data of a task cannot be loaded, or an embedding or a score is not finite.
            What was scored before it is stored.
    """
    plans = [
        _Plan(task, (instructions or {}).get(task.metadata.name, ""), stored_as) for task in tasks
    ]
    _warn_of_missing_instructions(model, name, plans, lineage)
    if results is not None:
        _use_stored(model, name, plans, results, again=again)
    missing = [plan for plan in plans if plan.score is None]
    for plan in missing:
        suites.load(plan.task)
    with text_progress() as progress:
        for plan in plans:
            if plan.score is not None:
                _print(progress, name, plan.score, "scored before")
        for plan, result in _run_all(model, name, missing, batch_size, progress, lineage):
            plan.score = result.score
            if results is not None:
                results.save(result)
            _print(progress, name, plan.score)
    return [plan.score for plan in plans if plan.score is not None]


def main_score(model: SentenceTransformer, task: AbsTask, batch_size: int = 32) -> float:
    """Return the score of a model on a task in percent, as `evaluate` without instructions does.

    Args:
        model: any sentence-transformers model, also one in training.
        task: a new task.
        batch_size: as in `evaluate`.

    Raises:
        UserError: if the data of the task cannot be loaded, or an embedding is not finite.
    """
    suites.load(task)
    with _finite_embeddings(model, "the encoder"):
        return 100 * float(_mteb_result(model, task, batch_size).get_score())


def _run_all(
    model: SentenceTransformer,
    name: str,
    plans: Sequence[_Plan],
    batch_size: int,
    progress: Progress,
    lineage: Lineage | None,
) -> Iterator[tuple[_Plan, TaskResult]]:
    """Run tasks one after the other, with one progress bar for all of them."""
    sizes = [getattr(plan.task, "texts", 0) for plan in plans]
    encoded_before = any(plan.stored_as and plan.stored_as.whole for plan in plans)
    bar = progress.add_task(
        name,
        total=sum(sizes) if all(sizes) else None,
        visible=bool(plans) and not encoded_before,
    )
    expected = 0
    with track_texts(model, progress, bar), _finite_embeddings(model, name):
        for place, (plan, size) in enumerate(zip(plans, sizes, strict=True), 1):
            about = plan.task.metadata.name
            progress.update(bar, description=f"{name}: {about} ({place}/{len(plans)})")
            before = progress.tasks[bar].completed
            result, items, seconds = _run(model, plan, batch_size)
            _require_score(name, plan.task, float(result.get_score()))
            texts = int(progress.tasks[bar].completed - before)
            yield plan, _task_result(model, name, plan, result, items, seconds, texts, lineage)
            expected += size
            if size:  # an upper bound, because mteb may draw fewer texts
                progress.update(bar, completed=expected)


def _require_score(name: str, task: AbsTask, score: float) -> None:
    """Refuse a score that is not finite, which a stored result cannot hold.

    Raises:
        NoScoreError: if it is not finite.
    """
    if math.isfinite(score):
        return
    metric = task.metadata.main_score
    why = f"its {metric} is not a finite number"
    if "spearman" in metric or "pearson" in metric:
        why = "all similarities are equal, so there is no correlation"
    raise NoScoreError(
        f"{name}: there is no score on {task.metadata.name}, because {why}; has the encoder "
        "collapsed? llm2comp analyze shows how alike its embeddings are"
    )


@contextmanager
def _finite_embeddings(model: SentenceTransformer, name: str) -> Iterator[None]:
    """Refuse embeddings that are not finite in a block, because their scores would mean nothing.

    Raises:
        BrokenModelError: from within `encode`.
    """

    def check(_: object, __: object, output: Mapping[str, Any]) -> None:
        if not output["sentence_embedding"].isfinite().all():
            raise BrokenModelError(
                f"{name}: an embedding is not finite, so it is not scored; give --dtype float32, "
                "or train the model again with a lower learning rate"
            )

    handle = model.register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _use_stored(
    model: SentenceTransformer,
    name: str,
    plans: Sequence[_Plan],
    results: ResultStore,
    *,
    again: bool,
) -> None:
    """Set the key of each task, and the score of those that are stored with the same key."""
    stored_as = plans[0].stored_as if plans else None
    fingerprint = (stored_as and stored_as.fingerprint) or store.fingerprint(model)
    if stored_as is not None:
        fingerprint += f", {stored_as.vectors}"
    for plan in plans:
        plan.key = store.key(fingerprint, plan.task, plan.instruction, quick=plan.quick)
        known = results.get(name, plan.task.metadata.name, plan.quick, plan.key)
        if known is not None and not again:
            plan.score = known.score


def _warn_of_missing_instructions(
    model: SentenceTransformer,
    name: str,
    plans: Sequence[_Plan],
    lineage: Lineage | None,
) -> None:
    if lineage is None or not lineage.trained_with_instructions:
        return
    without = [
        plan.task.metadata.name
        for plan in plans
        if not plan.instruction
        and not (isinstance(plan.task, AbsTaskRetrieval) and model.prompts.get("query"))
    ]
    if without:
        logger.warning(
            "%s was trained with instructions but is scored without them on %s; "
            "evaluate --instructions puts the paper's instructions before queries",
            name,
            ", ".join(without),
        )


def _run(
    model: SentenceTransformer, plan: _Plan, batch_size: int
) -> tuple[MtebResult, dict[str, Any], float]:
    """Return mteb's result, the items for intervals, and the seconds that the task took."""
    encoder = SentenceTransformerEncoderWrapper(model)
    if plan.instruction:
        encoder = InstructedEncoder(model, plan.instruction)
    if isinstance(model[-1], MemoryVectors) and not model[-1].beside:
        encoder = LateInteractionEncoder(encoder, MaxSim(len(model[-1].token_ids)))
    if plan.stored_as is not None:
        is_search = isinstance(plan.task, AbsTaskRetrieval)
        encoder = StoredEncoder(encoder, plan.stored_as, search=is_search)
    with tempfile.TemporaryDirectory() as predictions:
        start = perf_counter()
        kept = predictions if intervals.supports(plan.task) else None
        result = _mteb_result(encoder, plan.task, batch_size, kept)
        seconds = perf_counter() - start
        items = intervals.items(plan.task, Path(predictions), 100 * float(result.get_score()))
        return result, items, seconds


def _mteb_result(
    encoder: SentenceTransformer | SentenceTransformerEncoderWrapper,
    task: AbsTask,
    batch_size: int,
    prediction_folder: str | None = None,
) -> MtebResult:
    results = mteb.evaluate(
        encoder,
        task,
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
        prediction_folder=prediction_folder,
    )
    return results.task_results[0]


def _task_result(
    model: SentenceTransformer,
    name: str,
    plan: _Plan,
    result: MtebResult,
    items: dict[str, Any],
    seconds: float,
    texts: int,
    lineage: Lineage | None,
) -> TaskResult:
    about = plan.task.metadata
    vectors = plan.stored_as.vectors if plan.stored_as else VectorFormat(require_dim(model, None))
    paper = suites.paper_tasks().get(about.name)
    return TaskResult(
        model=name,
        score=Score(
            task=about.name,
            metric=about.main_score,
            main_score=100 * float(result.get_score()),
            seconds=seconds,
            texts=texts,
            texts_per_second=texts / seconds,
            samples=getattr(plan.task, "samples", 0),
            quick=plan.quick,
            dim=vectors.dim,
            precision=vectors.precision,
        ),
        type=paper.type if paper else about.type.lower(),
        instruction=plan.instruction,
        prompts=dict(model.prompts),
        key=plan.key,
        versions=store.versions(),
        lineage=lineage,
        items=items,
        mteb=result.to_dict(),
    )


def _print(progress: Progress, name: str, score: Score, note: str = "") -> None:
    texts = counted(score.texts, "text")
    cost = f"in {score.seconds:.0f} s ({texts}, {score.texts_per_second:,.0f}/s)"
    if not score.texts:
        cost = "from the same embeddings"
    progress.console.print(
        f"{name}: {score.task} {score.main_score:.1f} {note or cost}", highlight=False, markup=False
    )
