"""How sure is a difference of two models? Bootstrap over what the task's score is taken over."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytrec_eval
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from scipy.stats import bootstrap, spearmanr
from sklearn.metrics import average_precision_score

from llm2comp.errors import UserError

RESAMPLES = 1000
CONFIDENCE = 0.95

Floats = npt.NDArray[np.float64]


def _spearman(predicted: Floats, gold: Floats) -> float:
    return float(spearmanr(predicted, gold).statistic)


def _average_precision(predicted: Floats, gold: Floats) -> float:
    return float(average_precision_score(gold, predicted))


def _mean(predicted: Floats, _: Floats) -> float:
    return float(predicted.mean())


STATISTICS: dict[str, Callable[[Floats, Floats], float]] = {
    "spearman": _spearman,
    "average_precision": _average_precision,
    "mean": _mean,
}


def items(task: AbsTask, folder: Path) -> dict[str, Any]:
    """Return what the score of a task is taken over, one number an item.

    Args:
        task: as it was evaluated; of one subset and one split.
        folder: mteb's ``prediction_folder``.

    Returns:
        ``statistic`` (a key of :data:`STATISTICS`), ``predicted`` and ``gold``, whose statistic
        is the main score; empty if the task's metric is not one over items, or has several splits.
    """
    if not supports(task):
        return {}
    file = folder / task.prediction_file_name
    content = json.loads(file.read_text(encoding="utf-8"))
    content.pop("mteb_model_meta")
    ((subset, splits),) = content.items()
    ((split, predictions),) = splits.items()
    assert task.dataset is not None
    data: Any = task.dataset.get(subset, task.dataset)  # one subset may stand without its name
    if isinstance(task, AbsTaskSTS):
        return _items("spearman", predictions["cosine_scores"], data[split]["score"])
    if isinstance(task, AbsTaskPairClassification):
        return _best_distance(predictions, data[split]["labels"])
    if isinstance(task, AbsTaskClassification):
        gold = np.array(data[split]["label"])
        right = [np.array(experiment) == gold for experiment in predictions]
        return _items("mean", np.mean(right, axis=0), gold)
    relevant = data[split]["relevant_docs"]
    judge = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10"})
    judged = judge.evaluate(predictions)
    gains = [judged[query]["ndcg_cut_10"] for query in sorted(judged)]  # paired between models
    return _items("mean", gains, np.zeros(len(gains)))


def supports(task: AbsTask) -> bool:
    """Whether two models' scores on a task can be compared item by item."""
    if len(task.metadata.eval_splits) > 1 or len(task.hf_subsets) > 1:
        return False
    about = task.metadata.main_score
    kinds = (AbsTaskSTS, AbsTaskPairClassification, AbsTaskClassification)
    return isinstance(task, kinds) or (isinstance(task, AbsTaskRetrieval) and about == "ndcg_at_10")


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float]:
    """Return the 95 % interval of ``one`` minus ``other`` in percent, by a paired bootstrap.

    Percentiles of 1,000 resamplings of the items (Efron and Tibshirani, 1993), seed 0.

    Args:
        one: of :func:`items`.
        other: the same task's, of another model.

    Raises:
        UserError: if the two were not scored over the same items.
    """
    if one["gold"] != other["gold"]:
        raise UserError("two results of one task are over different items; score both again")
    statistic = STATISTICS[one["statistic"]]

    def gap(a: Floats, b: Floats, gold: Floats) -> float:
        return 100 * (statistic(a, gold) - statistic(b, gold))

    data = [np.array(part) for part in (one["predicted"], other["predicted"], one["gold"])]
    found = bootstrap(
        data,
        gap,
        paired=True,
        vectorized=False,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=0,
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _items(statistic: str, predicted: Any, gold: Any) -> dict[str, Any]:
    return {
        "statistic": statistic,
        "predicted": [float(f"{value:.7g}") for value in predicted],
        "gold": [float(value) for value in gold],
    }


def _best_distance(predictions: Mapping[str, Any], labels: Any) -> dict[str, Any]:
    """Take the measure whose average precision is highest, as mteb's ``max_ap`` does."""
    found = []
    for name, values in predictions.items():
        signed = np.array(values) * (-1 if name.endswith("distances") else 1)
        found.append(_items("average_precision", signed, labels))
    gold = np.array(labels, dtype=float)
    return max(found, key=lambda one: _average_precision(np.array(one["predicted"]), gold))
