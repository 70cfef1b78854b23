"""MaxSim over k memory vectors as the score of a task: a literal reference, and refusals."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from typer.testing import CliRunner

import llm2comp
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.evaluation import evaluate as evaluation
from llm2comp.evaluation import intervals, late_interaction, runner, suites
from llm2comp.evaluation.store import ResultStore
from llm2comp.model import encoder
from llm2comp.model.backbone import load_backbone
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.model.modules import merge_memory
from llm2comp.model.multi_vector.late_interaction import as_multi_vector
from llm2comp.model.multi_vector.memory_vectors import append_memory_vectors
from llm2comp.recipe_parts import Memory

Sets = dict[str, list[dict[str, str]]]
PROMPTS = {"query": "Question: ", "document": ""}


def make(backbone: Path, k: int = 3) -> SentenceTransformer:
    body, tokenizer = load_backbone(str(backbone))
    extended = add_memory_tokens(body, tokenizer, Memory(tokens=k), seed=0)
    return encoder.assemble(body, extended, k, causal=True, prompts=PROMPTS)


@pytest.fixture
def by_name(tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `evaluate` load an encoder that has no folder."""
    monkeypatch.setattr(evaluation, "load", lambda *_, **__: make(tiny_backbone))
    monkeypatch.setattr(evaluation.released, "lineage_of", lambda _: None)


def test_scores_equal_those_of_the_stock_multi_vector_encoder(
    tiny_backbone: Path, sets: Sets
) -> None:
    stock = as_multi_vector(make(tiny_backbone), "tiny")
    names = ["STSBenchmark", "SQuADRetrieval"]
    tasks = late_interaction.with_max_sim(suites.tasks(names))
    model = append_memory_vectors(make(tiny_backbone), "tiny")
    scores = runner.evaluate(model, "tiny", tasks)

    test = [row for row in sets["stsb"] if row["split"] == "test"]
    pairs = [stock.encode([row[key] for row in test]) for key in ("sentence1", "sentence2")]
    both = [np.diag(stock.similarity(*side)) for side in (pairs, pairs[::-1])]
    human = [float(row["score"]) for row in test]
    expected = [100 * float(spearmanr(sum(both), human).statistic)]

    contexts = list(dict.fromkeys(row["context"] for row in sets["squad-dev"]))
    passages = stock.encode_document(contexts)
    gains = []
    for row in sets["squad-dev"]:
        similarity = stock.similarity(stock.encode_query([row["question"]]), passages)[0]
        rank = int((similarity > similarity[contexts.index(row["context"])]).sum())
        gains.append(1 / np.log2(rank + 2) if rank < 10 else 0)
    expected.append(100 * float(np.mean(gains)))
    assert [score.main_score for score in scores] == pytest.approx(expected, abs=1e-3)
    assert [score.metric for score in scores] == ["spearman", "ndcg_at_10"]
    plain = runner.evaluate(make(tiny_backbone), "tiny", suites.tasks(names))
    assert [score.main_score for score in plain] != pytest.approx(expected, abs=1e-3)


def test_sts_does_not_depend_on_which_text_is_first(tiny_backbone: Path, sets: Sets) -> None:
    model = append_memory_vectors(make(tiny_backbone), "tiny")

    def score() -> float:
        tasks = late_interaction.with_max_sim(suites.tasks(["STSBenchmark"]))
        return runner.evaluate(model, "tiny", tasks)[0].main_score

    before = score()
    for row in sets["stsb"]:
        row["sentence1"], row["sentence2"] = row["sentence2"], row["sentence1"]
    assert score() == pytest.approx(before, abs=1e-4)


def test_items_give_the_score_again(tiny_backbone: Path, sets: Sets, tmp_path: Path) -> None:
    """Otherwise intervals would be those of cosines."""
    assert sets
    model = append_memory_vectors(make(tiny_backbone), "tiny")
    tasks = late_interaction.with_max_sim(suites.tasks(["STSBenchmark"]))
    (score,) = runner.evaluate(model, "tiny", tasks, ResultStore(tmp_path))
    (result,) = ResultStore(tmp_path).all()
    statistic = intervals.STATISTICS[result.items["statistic"]]
    lists = (np.array(result.items[key]) for key in ("predicted", "gold"))
    assert 100 * statistic(*lists) == pytest.approx(score.main_score)


@pytest.mark.usefixtures("by_name")
def test_both_kinds_of_vectors_have_rows_of_their_own(sets: Sets, tmp_path: Path) -> None:
    assert sets
    options: dict[str, Any] = {"tasks": ["STSBenchmark"], "out": tmp_path}
    one = llm2comp.evaluate(["tiny"], **options)
    many = llm2comp.evaluate(["tiny"], vectors="k", **options)
    assert [*one, *many] == ["tiny", "tiny, k vectors"]
    assert [result.model for result in ResultStore(tmp_path).all()] == [*one, *many]
    # stored scores are found again, each with its own kind
    assert llm2comp.evaluate(["tiny"], vectors="k", **options) == many
    assert llm2comp.evaluate(["tiny"], **options) == one


@pytest.mark.usefixtures("by_name")
def test_tasks_without_pairs_of_texts_are_refused_or_left_out(
    sets: Sets, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert sets
    with pytest.raises(UserError, match="TREC has no such score; leave it out"):
        llm2comp.evaluate(["tiny"], tasks=["STS17", "TREC"], vectors="k", out=tmp_path)
    assert not list(tmp_path.iterdir())
    logging.getLogger("llm2comp").propagate = True
    scores = llm2comp.evaluate(["tiny"], vectors="k", out=tmp_path, quick=True)
    assert [score.task for score in scores["tiny, k vectors"]] == [
        "STSBenchmark",
        "STS17",
        "SQuADRetrieval",
    ]
    assert "TwentyNewsgroups" in caplog.text
    assert "left out" in caplog.text


@pytest.mark.usefixtures("by_name")
def test_names_are_checked_with_one_set_of_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks are made once to check them, and once for each encoder."""
    made: list[Any] = []
    choose = suites.choose
    monkeypatch.setattr(suites, "choose", lambda *a, **o: made.append(a) or choose(*a, **o))
    monkeypatch.setattr(runner, "evaluate", lambda *_, **__: [])
    llm2comp.evaluate(["tiny"], tasks=["STS17"], vectors="k", out=tmp_path)
    assert len(made) == 2


@pytest.mark.parametrize("option", [{"dim": 8}, {"precision": "int8"}, {"sizes": True}], ids=str)
def test_sizes_of_one_vector_are_refused(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="are for one vector per text"):
        llm2comp.evaluate(["tiny"], tasks=["STS17"], vectors="k", out=tmp_path, **option)


def test_the_command_takes_both_kinds_and_no_other() -> None:
    command = ["evaluate", "no-such-model", "--tasks", "STS17", "--vectors"]
    refused = CliRunner().invoke(app, [*command, "three"])
    assert refused.exit_code == 2
    assert "'one', 'k'" in refused.output
    unknown = CliRunner().invoke(app, [*command, "k"])
    assert unknown.exit_code == 2
    assert "no-such-model" in unknown.output


def test_encoders_without_several_memory_tokens_are_refused(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="tiny has one memory token"):
        append_memory_vectors(make(tiny_backbone, 1), "tiny")
    with pytest.raises(UserError, match="tiny merges memory tokens"):
        append_memory_vectors(merge_memory(make(tiny_backbone), 0.5), "tiny")
    with pytest.raises(UserError, match="works in memory only"):
        append_memory_vectors(make(tiny_backbone), "tiny").save_pretrained(str(tmp_path))
