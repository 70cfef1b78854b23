from pathlib import Path

import numpy as np
import pytest

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines, intervals, runner, suites
from llm2comp.evaluation.store import ResultStore

Sets = dict[str, list[dict[str, str]]]
OVER_ITEMS = ["STSBenchmark", "STS17", "TREC", "R8", "SQuADRetrieval", "PrivacyPolicy"]


def test_the_items_statistic_is_the_main_score(
    tiny_backbone: Path, sets: Sets, tmp_path: Path
) -> None:
    assert sets
    model = baselines.build("weighted-mean", tiny_backbone)
    runner.evaluate(model, "tiny", suites.choose("offline"), ResultStore(tmp_path))
    kept = {one.score.task: one for one in ResultStore(tmp_path).all()}
    assert [name for name, one in kept.items() if one.items] == sorted(OVER_ITEMS)
    for name in OVER_ITEMS:
        items, score = kept[name].items, kept[name].score
        statistic = intervals.STATISTICS[items["statistic"]]
        found = 100 * statistic(np.array(items["predicted"]), np.array(items["gold"]))
        # mteb rounds retrieval scores to five decimals.
        assert found == pytest.approx(score.main_score, abs=1e-3), name
        assert len(items["predicted"]) == len(items["gold"]) == score.samples


def test_the_interval_of_a_mean_is_that_of_the_formula() -> None:
    """Of a difference with mean 0.1 and deviation 1 over 2,500 items: 10 +- 196 / 50 percent."""
    noise = np.random.default_rng(0).standard_normal(2500)
    noise = (noise - noise.mean()) / noise.std()
    shared = np.random.default_rng(1).standard_normal(2500)  # of the items, not of the models
    one = {"statistic": "mean", "predicted": list(shared + 0.1 + noise), "gold": [0.0] * 2500}
    other = {"statistic": "mean", "predicted": list(shared), "gold": [0.0] * 2500}
    low, high = intervals.difference(one, other)
    assert low == pytest.approx(10 - 3.92, abs=0.3)
    assert high == pytest.approx(10 + 3.92, abs=0.3)
    assert intervals.difference(one, one) == (0, 0)
    assert intervals.difference(one, other) == (low, high)


def test_different_items_do_not_compare() -> None:
    one = {"statistic": "spearman", "predicted": [1.0, 2.0], "gold": [1.0, 2.0]}
    with pytest.raises(UserError, match="over different items"):
        intervals.difference(one, one | {"gold": [1.0, 3.0]})
