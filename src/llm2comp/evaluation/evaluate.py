"""Score encoders and training-free baselines on tasks: what ``llm2comp evaluate`` does."""

from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines as training_free
from llm2comp.evaluation import runner, suites
from llm2comp.evaluation.store import ResultStore, Score
from llm2comp.inference.load import load
from llm2comp.model import released
from llm2comp.model.lineage import Lineage
from llm2comp.utils.choices import Precision, Suite


def evaluate(
    models: Sequence[str],
    *,
    baselines: Sequence[str],
    backbone: str,
    suite: Suite,
    tasks: Sequence[str] | None,
    quick: bool,
    instructions: bool,
    out: Path | None,
    again: bool,
    batch_size: int,
    dtype: Precision,
    merge_threshold: float | None,
) -> dict[str, list[Score]]:
    """Score models; arguments, result and errors are those of :func:`llm2comp.api.evaluate`."""
    if not models and not baselines:
        raise UserError("name a model, or a baseline, to evaluate")
    if merge_threshold is not None and not models:
        raise UserError("merging is for encoders with memory tokens; name one")
    suites.choose(suite, tasks, quick=quick)  # a wrong name is an error before models are loaded
    asked = {name: about.instruction for name, about in suites.paper_tasks().items()}
    rows: dict[str, list[Score]] = {}

    def score(row: str, model: SentenceTransformer, lineage: Lineage | None) -> None:
        rows[row] = runner.evaluate(
            model,
            row,
            suites.choose(suite, tasks, quick=quick),
            ResultStore(out),
            batch_size,
            again=again,
            instructions=asked if instructions else None,
            lineage=lineage,
        )

    for name in baselines:
        row = training_free.row_name(name, backbone)
        score(row, training_free.load_baseline(name, backbone, dtype), None)
    for name in models:
        row = row_name(name, merge_threshold, instructed=instructions)
        score(row, load(name, dtype, merge_threshold), released.lineage_of(name))
    return rows


def row_name(model: str, merge_threshold: float | None = None, *, instructed: bool = False) -> str:
    """Return how tables and kept results call a model that is evaluated in some way."""
    merged = "" if merge_threshold is None else f", merged at {merge_threshold:g}"
    return model + merged + (", instructed" if instructed else "")
