"""Confidence intervals of the difference of two models, by a bootstrap over the items of a task."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytrec_eval
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskMultilabelClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from scipy.stats import bootstrap, pearsonr, rankdata

from llm2comp.errors import UserError

RESAMPLES = 1000
"""Number of bootstrap resamples."""
CONFIDENCE = 0.95
BATCH = 200_000
"""Items in memory at once, in resamples."""

Floats = npt.NDArray[np.float64]


def _spearman(predicted: Floats, gold: Floats) -> Floats:
    ranks = rankdata(predicted, axis=-1), rankdata(gold, axis=-1)
    correlation: Floats = pearsonr(*ranks, axis=-1).statistic
    return correlation


def _average_precision(predicted: Floats, gold: Floats) -> Floats:
    """Return the mean over the positives of the precision at their score, ties included."""
    positive = gold > 0
    above = rankdata(-predicted, "max", axis=-1)
    positives_above = rankdata(np.where(positive, -predicted, np.inf), "max", axis=-1)
    precision: Floats = (positives_above / above).mean(-1, where=positive)
    return precision


def _mean(predicted: Floats, _: Floats) -> Floats:
    mean: Floats = predicted.mean(-1)
    return mean


STATISTICS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "spearman": _spearman,
    "average_precision": _average_precision,
    "mean": _mean,
}
"""The score of a task from the `predicted` and `gold` numbers of its items, as a fraction.

The numbers are `(..., items)`, and the score is `(...)`.
"""


def items(task: AbsTask, folder: Path, main_score: float) -> dict[str, Any]:
    """Return the items that the score of a task is computed from: pairs, texts or questions.

    Args:
        task: the task after its evaluation.
        folder: mteb's `prediction_folder`.
        main_score: the score in percent.

    Returns:
        `statistic` (key of `STATISTICS`), and the lists `predicted` and `gold` with one number per
        item. The statistic of the lists is the main score. Empty if `supports` is false, if the
        task computes its score in another way, or if there is a single item.
    """
    if not supports(task):
        return {}
    found = _saved_items(task, folder)
    return found if explains(found, main_score) else {}


def explains(items: Mapping[str, Any], main_score: float) -> bool:
    """Tell whether these items give the interval of a score, in percent.

    They do if there are two or more, because resamples of a single one are all the same, and the
    score is computed from them and in no other way.
    """
    enough = len(items.get("predicted", ())) > 1
    return enough and abs(score(items) - main_score) < 0.01


def _saved_items(task: AbsTask, folder: Path) -> dict[str, Any]:
    file = folder / task.prediction_file_name
    content = json.loads(file.read_text(encoding="utf-8"))
    content.pop("mteb_model_meta")
    ((subset, splits),) = content.items()
    ((split, predictions),) = splits.items()
    assert task.dataset is not None
    data: Any = task.dataset.get(subset, task.dataset)  # a single subset may have no name
    if isinstance(task, AbsTaskSTS):
        own = task.metadata.main_score == "spearman"  # the model's own similarity, not cosines
        scores = predictions["similarity_scores" if own else "cosine_scores"]
        return _items("spearman", scores, data[split]["score"])
    if isinstance(task, AbsTaskPairClassification):
        labels = data[split][task.label_column_name]
        # Older data sets of mteb are one row, whose columns are the lists.
        return _best_distance(predictions, labels[0] if len(data[split]) == 1 else labels)
    if isinstance(task, AbsTaskClassification):
        gold = np.array(data[split][task.label_column_name])
        correct = [np.array(experiment) == gold for experiment in predictions]
        if not np.issubdtype(gold.dtype, np.number):  # items are numbers, and labels may be texts
            gold = np.unique(gold, return_inverse=True)[1]
        return _items("mean", np.mean(correct, axis=0), gold)
    assert isinstance(task, AbsTaskRetrieval)
    if task.ignore_identical_ids:  # mteb saves the query's own text too, and does not score it
        predictions = {
            query: {hit: similarity for hit, similarity in hits.items() if hit != query}
            for query, hits in predictions.items()
        }
    relevant = data[split]["relevant_docs"]
    judge = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10"})
    judged = judge.evaluate(predictions)
    # Sorted, so that the items of two models are in the same order.
    gains = [judged[query]["ndcg_cut_10"] for query in sorted(judged)]
    return _items("mean", gains, np.zeros(len(gains)))


def supports(task: AbsTask) -> bool:
    """Tell whether the score of a task is computed from items, in one subset and one split."""
    if len(task.metadata.eval_splits) > 1 or len(task.hf_subsets) > 1:
        return False
    measure = task.metadata.main_score
    if isinstance(task, AbsTaskRetrieval):
        return bool(measure == "ndcg_at_10")
    if isinstance(task, AbsTaskPairClassification):
        return bool(measure == "max_ap")
    if isinstance(task, AbsTaskClassification):
        # Predictions of several labels, or of folds, are not one for each text in its order.
        several = isinstance(task, AbsTaskMultilabelClassification) or task.is_cross_validation
        return bool(measure == "accuracy" and not several)
    return isinstance(task, AbsTaskSTS)


def score(items: Mapping[str, Any]) -> float:
    """Return the score in percent that the result of `items`, which is not empty, stands for."""
    predicted, gold = np.array(items["predicted"]), np.array(items["gold"])
    return 100 * float(STATISTICS[items["statistic"]](predicted, gold))


def difference(model: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[float, float]:
    """Return the 95 % interval of the score of `model` minus that of `reference`, in percent.

    It is the percentile interval of a paired bootstrap with 1,000 resamples of the items (Efron and
    Tibshirani, 1993).

    Args:
        model: the result of `items` for one model.
        reference: the result of `items` for another model on the same task.

    Raises:
        UserError: if the two were scored on different items.
    """
    one, other = resampled([model, reference])
    return interval(one - other)


def resampled(runs: Sequence[Mapping[str, Any]], seed: int = 0) -> Floats:
    """Return the scores of several models on resamples of a task's items, in percent.

    Args:
        runs: the result of `items` for each model, on the same task.
        seed: of the resamples. They are the same for all models.

    Returns:
        `(models, RESAMPLES)`.

    Raises:
        UserError: if two models were scored on different items.
    """
    gold = runs[0]["gold"]
    if any(run["gold"] != gold for run in runs):
        raise UserError("two results of one task are over different items; score both again")
    statistic = STATISTICS[runs[0]["statistic"]]

    def scores(*samples: Floats, **_: int) -> Floats:
        *predicted, gold = samples
        return 100 * np.stack([statistic(one, gold) for one in predicted])

    result = bootstrap(
        [*(np.array(run["predicted"]) for run in runs), np.array(gold)],
        scores,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // len(gold)),
        method="percentile",
        rng=seed,
    )
    distribution: Floats = result.bootstrap_distribution
    return distribution


def interval(distribution: Floats) -> tuple[float, float]:
    """Return the percentile interval of a statistic, given its values `(RESAMPLES,)`.

    A resample without a value, such as the correlation of equal numbers, is left out.
    """
    low, high = np.nanquantile(distribution, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _items(statistic: str, predicted: Any, gold: Any) -> dict[str, Any]:
    return {
        "statistic": statistic,
        "predicted": [float(f"{value:.7g}") for value in predicted],
        "gold": [float(value) for value in gold],
    }


def _best_distance(predictions: Mapping[str, Any], labels: Any) -> dict[str, Any]:
    """Return the items of the measure with the highest average precision, as mteb's `max_ap`."""
    candidates = []
    for name, values in predictions.items():
        signed = np.array(values) * (-1 if name.endswith("distances") else 1)
        candidates.append(_items("average_precision", signed, labels))
    gold = np.array(labels, dtype=float)
    return max(candidates, key=lambda items: _average_precision(np.array(items["predicted"]), gold))
