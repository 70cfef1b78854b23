"""Run a model over tasks with ``mteb.evaluate``, and keep the results."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import mteb
from sentence_transformers import SentenceTransformer

from llm2comp.cache import whole_file
from llm2comp.errors import UserError
from llm2comp.evaluation.tasks import DEVELOPMENT, TASKS, OfflineTask
from llm2comp.progress import advancing, text_progress


@dataclasses.dataclass(frozen=True)
class Score:
    """What one model got on one task."""

    task: str
    metric: str
    main_score: float
    """The metric in percent."""
    seconds: float
    """Encoding and scoring, not loading."""
    texts: int
    texts_per_second: float
    samples: int
    """What the score is taken over: pairs, questions."""
    quick: bool


def evaluate(
    model: SentenceTransformer,
    name: str,
    tasks: Sequence[str],
    quick: bool = False,
    output: Path | None = None,
    batch_size: int = 32,
) -> list[Score]:
    """Score a model on tasks, with a progress bar over their texts.

    Retrieval uses the model's ``query`` and ``document`` prompts, if it has
    them; the result file says which.

    Args:
        model: any sentence-transformers model.
        name: how results call it.
        tasks: names of ``evaluation.tasks.TASKS`` or ``DEVELOPMENT``.
        quick: take each task's smaller version, where it has one.
        output: folder for one JSON a model and task, ``<name>/<task>[-quick].json``,
            with mteb's full result in it.
        batch_size: texts at once; it changes speed, not scores.

    Raises:
        UserError: if a task is unknown, before anything is loaded or run.
    """
    known = TASKS | DEVELOPMENT
    unknown = [task for task in tasks if task not in known]
    if unknown or not tasks:
        wrong = f"unknown task {unknown[0]!r}" if unknown else "no task named"
        raise UserError(f"{wrong}; the tasks are {', '.join(known)}")
    loaded = [known[task](quick=quick) for task in tasks]
    for task in loaded:
        task.load_data()
    scores = []
    with text_progress() as progress:
        bar = progress.add_task(name, total=sum(task.texts for task in loaded))
        with advancing(model, progress, bar):
            for task in loaded:
                progress.update(bar, description=f"{name}: {task.metadata.name}")
                score, result = _run(model, task, batch_size)
                scores.append(score)
                if output is not None:
                    _write(output, name, score, dict(model.prompts), result)
                progress.console.print(
                    f"{name}: {score.task} {score.main_score:.1f} in {score.seconds:.0f} s "
                    f"({score.texts:,} texts, {score.texts_per_second:,.0f}/s)",
                    highlight=False,
                    markup=False,
                )
    return scores


def _run(
    model: SentenceTransformer, task: OfflineTask, batch_size: int
) -> tuple[Score, dict[str, Any]]:
    start = perf_counter()
    results = mteb.evaluate(
        model,
        task,
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
    )
    seconds = perf_counter() - start
    result = results.task_results[0]
    score = Score(
        task=task.metadata.name,
        metric=task.metadata.main_score,
        main_score=100 * float(result.get_score()),
        seconds=seconds,
        texts=task.texts,
        texts_per_second=task.texts / seconds,
        samples=task.samples,
        quick=task.quick,
    )
    return score, result.to_dict()


def _write(
    output: Path, name: str, score: Score, prompts: dict[str, Any], result: dict[str, Any]
) -> None:
    folder = re.sub(r"[^\w.-]+", "__", name).strip("_.") or "model"
    file = output / folder / f"{score.task}{'-quick' if score.quick else ''}.json"
    content = {"model": name, **dataclasses.asdict(score), "prompts": prompts, "mteb": result}
    with whole_file(file) as partial:
        text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
        partial.write_text(text + "\n", encoding="utf-8")
