"""The scores of an encoder on MTEB's tasks, as the metadata of a model card have them."""

from pathlib import Path

import mteb
from huggingface_hub import EvalResult

from llm2comp.evaluation.evaluate import CHANGED_MEMORY
from llm2comp.evaluation.store import ResultStore, Score
from llm2comp.evaluation.tasks.registry import DEVELOPMENT, TASKS
from llm2comp.model import released
from llm2comp.model.folder.names import FOLDERS_OF_A_RUN
from llm2comp.model.lineage import Lineage
from llm2comp.training.run_folder import STAGE_LABELS, read_scores

SAME_DATA = {"STSBenchmark": "default", "STS17": "en-en"}
"""Tasks of this package with all of mteb's data, also in their quick version, and their subset."""


def mteb_results(name: str, folder: Path, lineage: Lineage, store: ResultStore) -> list[EvalResult]:
    """Return the scores that are known of an encoder on MTEB's tasks, sorted by task.

    Only scores of whole embeddings in float32 without another instruction count. Tasks of this
    package whose data is not mteb's, and data of one's own, are left out.

    Args:
        name: of the encoder, as `llm2comp.load` takes it.
        folder: of the encoder.
        lineage: of the encoder. A stored score is the encoder's if it was stored with the same.
        store: scores of `llm2comp evaluate`. They replace those of the run.

    Raises:
        UserError: if a file of scores is broken.
    """
    found = {score.task: _eval_result(score) for score in _of_run(name, folder, lineage)}
    if lineage.reference is None:  # an older version wrote it, and it may be that of another run
        return _known(found)
    dimension = len(lineage.reference.embeddings[0])
    for result in store.all():
        whole = result.score.dim in (0, dimension) and result.score.precision == "float32"
        plain = not result.instruction and not CHANGED_MEMORY.search(result.model)
        if result.lineage == lineage and whole and plain:
            subsets = {row["hf_subset"] for rows in result.mteb["scores"].values() for row in rows}
            found[result.score.task] = _eval_result(result.score, subsets)
    return _known(found)


def _known(found: dict[str, EvalResult | None]) -> list[EvalResult]:
    """Return the results by name of the task, without tasks that are none of mteb's."""
    return [result for _, result in sorted(found.items()) if result is not None]


def _of_run(name: str, folder: Path, lineage: Lineage) -> list[Score]:
    """Return the scores that `llm2comp train` wrote beside an encoder of a run or of a release."""
    release = name.partition("/")[0]
    run = folder.resolve().parent
    if release in released.names() and not Path(name).exists():
        run = released.RELEASED / release
    elif folder.resolve().name not in FOLDERS_OF_A_RUN or lineage.compiled is not None:
        return []
    return read_scores(run).get(STAGE_LABELS.get(lineage.stages[-1].stage, ""), [])


def _eval_result(score: Score, subsets: set[str] | None = None) -> EvalResult | None:
    """Return a score as the hub has it; None if its task is none of mteb's.

    Args:
        score: in percent, as in MTEB's own cards.
        subsets: of the task's data that were scored; None for those that the task has.
    """
    if score.task in SAME_DATA:
        subsets = {SAME_DATA[score.task]}
    elif score.task in TASKS | DEVELOPMENT:
        return None
    try:
        about = mteb.get_task(score.task).metadata
    except KeyError:  # data of one's own
        return None
    scored = sorted(subsets or about.hf_subsets)
    return EvalResult(
        task_type=about.type,
        dataset_type=about.dataset["path"],
        dataset_name=f"MTEB {score.task}",
        dataset_config=scored[0] if len(scored) == 1 else None,  # else the mean over all
        dataset_split=about.eval_splits[0] if len(about.eval_splits) == 1 else None,
        dataset_revision=about.dataset["revision"],
        metric_type=score.metric,
        metric_value=round(score.main_score, 4),
        source_name="MTEB",
        source_url="https://github.com/embeddings-benchmark/mteb",
    )
