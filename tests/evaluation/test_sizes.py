"""Scores of small vectors: those of a literal reference, with the texts encoded once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

from llm2comp.data import catalog
from llm2comp.errors import UserError
from llm2comp.evaluation import baselines, runner, sizes, suites
from llm2comp.evaluation.evaluate import Row, Vectors
from llm2comp.evaluation.results import score_cells, size_columns
from llm2comp.evaluation.store import ResultStore, Score
from llm2comp.inference.vector_format import VectorFormat
from llm2comp.model.lineage import Lineage

Sets = dict[str, list[dict[str, str]]]
RANGES = np.array([[-0.6] * 16, [0.6] * 16], dtype=np.float32)
FORMATS = [
    VectorFormat(32),
    VectorFormat(16),
    VectorFormat(16, "float16"),
    VectorFormat(16, "int8", RANGES),
    VectorFormat(16, "binary"),
]


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> SentenceTransformer:
    built = baselines.build("weighted-mean", tiny_backbone)
    built.prompts = {"query": "Question: ", "document": "Passage: "}
    return built


def score_all(
    model: SentenceTransformer, tasks: list[str], folder: Path, wanted: list[VectorFormat] = FORMATS
) -> dict[str, list[Score]]:
    return sizes.evaluate_sizes(
        model, "tiny", lambda: suites.tasks(tasks), wanted, ResultStore(folder)
    )


def points(scores: list[Score]) -> list[float]:
    return [score.main_score for score in scores]


def restored(vectors: VectorFormat, whole: Any) -> Any:
    """Truncate, quantise by the stock function, and restore; written without our own functions."""
    short = whole[:, : vectors.dim]
    short = short / np.linalg.norm(short, axis=1, keepdims=True)
    if vectors.precision == "float16":
        return short.astype(np.float16).astype(np.float32)
    if vectors.precision == "int8":
        steps = quantize_embeddings(short, "int8", ranges=vectors.ranges).astype(float) + 128.5
        return -0.6 + 1.2 * steps / 255
    return np.where(short > 0, 1.0, -1.0) if vectors.precision == "binary" else short


def test_scores_equal_a_literal_reference(
    model: SentenceTransformer, sets: Sets, tmp_path: Path
) -> None:
    test = [row for row in sets["stsb"] if row["split"] == "test"]
    first, second = (model.encode([row[f"sentence{n}"] for row in test]) for n in (1, 2))
    human = [float(row["score"]) for row in test]
    questions = [f"Question: {row['question']}" for row in sets["squad-dev"]]
    contexts = list(dict.fromkeys(row["context"] for row in sets["squad-dev"]))
    gold = [contexts.index(row["context"]) for row in sets["squad-dev"]]
    queries = model.encode(questions)
    passages = model.encode([f"Passage: {context}" for context in contexts])
    found = score_all(model, ["STSBenchmark", "SQuADRetrieval"], tmp_path)
    for vectors in FORMATS:
        one, other = restored(vectors, first), restored(vectors, second)
        cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1)
        cosines = cosines / np.linalg.norm(other, axis=1)
        documents = restored(vectors, passages)
        documents = documents / np.linalg.norm(documents, axis=1, keepdims=True)
        short = queries[:, : vectors.dim]
        similarities = short @ documents.T
        if vectors.precision == "binary":  # the 40 nearest by their signs are rescored
            common = np.sign(short) @ np.sign(documents).T
            last = np.sort(common, axis=1)[:, -40]
            similarities = np.where(common >= last[:, None], similarities, -9)
        expected = 100 * float(spearmanr(cosines, human).statistic)
        sts, retrieval = points(found[sizes.size_name("tiny", vectors)])
        assert sts == pytest.approx(expected, abs=1e-2)
        of_gold = similarities[range(len(gold)), gold][:, None]
        best = gain((similarities > of_gold + 1e-6).sum(axis=1))
        worst = gain((similarities >= of_gold - 1e-6).sum(axis=1) - 1)  # behind all ties
        assert worst - 1e-2 <= retrieval <= best + 1e-2
        if vectors.precision != "binary":  # the tiny model gives many passages the same signs
            assert best - worst < 1e-2


def gain(ranks: Any) -> float:
    return 100 * float(np.mean([1 / np.log2(rank + 2) if rank < 10 else 0 for rank in ranks]))


def test_texts_are_encoded_once_and_whole_vectors_have_the_usual_scores(
    model: SentenceTransformer, sets: Sets, tmp_path: Path
) -> None:
    assert sets
    names = ["STS17", "SQuADRetrieval", "PrivacyPolicy", "TREC", "PubMedJournals"]
    usual = runner.evaluate(model, "tiny", suites.tasks(names))
    found = score_all(model, names, tmp_path, [FORMATS[0], FORMATS[-1]])
    assert points(found["tiny, 32 x float32"]) == pytest.approx(points(usual), abs=1e-3)
    for number, score in enumerate(usual):
        texts = [scores[number].texts for scores in found.values()]
        assert texts == [score.texts, 0]


def test_instructions_are_before_the_queries_of_all_sizes(
    model: SentenceTransformer, sets: Sets, tmp_path: Path
) -> None:
    assert sets
    instructions = {"SQuADRetrieval": "Find the passage of"}
    usual = runner.evaluate(
        model, "tiny", suites.tasks(["SQuADRetrieval"]), instructions=instructions
    )
    found = sizes.evaluate_sizes(
        model,
        "tiny",
        lambda: suites.tasks(["SQuADRetrieval"]),
        FORMATS[:1],
        ResultStore(tmp_path),
        instructions=instructions,
    )
    assert points(found["tiny, 32 x float32"]) == points(usual)
    (result,) = ResultStore(tmp_path).all()
    assert result.instruction == "Find the passage of"


def test_sizes_are_stored_apart_and_not_scored_again(
    model: SentenceTransformer, sets: Sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sets
    first = score_all(model, ["STSBenchmark"], tmp_path)
    assert sorted(file.parent.name for file in tmp_path.rglob("*.json")) == [
        "tiny__16__x__binary",
        "tiny__16__x__float16",
        "tiny__16__x__float32",
        "tiny__16__x__int8",
        "tiny__32__x__float32",
    ]
    monkeypatch.setattr(model, "forward", None)  # nothing is encoded
    assert score_all(model, ["STSBenchmark"], tmp_path) == first
    monkeypatch.undo()
    keys = {result.key for result in ResultStore(tmp_path).all()}
    assert len(keys) == 5
    assert {(s.dim, s.precision) for (s,) in first.values()} == {
        (vectors.dim, vectors.precision) for vectors in FORMATS
    }


def test_the_dimensions_are_those_of_matryoshka_training_or_halves(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        catalog, "rows", lambda _: iter([{"text": f"text {n}"} for n in range(256)])
    )
    halves = sizes.formats(model, None, None)
    expected = [max(1, int(dim * size)) for dim in (32, 16, 8, 4) for size in (4, 2, 1, 1 / 8)]
    assert [vectors.bytes for vectors in halves] == sorted(expected, reverse=True)
    lineage = Lineage.model_construct(
        stages=[type("Stage", (), {"matryoshka": [32, 12]})()]  # type: ignore[list-item]
    )
    trained = sizes.formats(model, lineage, None)
    assert {vectors.dim for vectors in trained} == {32, 12}
    assert {vectors.precision for vectors in trained} == {"float32", "float16", "int8", "binary"}


def test_the_table_has_bytes_and_the_share_of_the_largest_vectors() -> None:
    def score(value: float, dim: int, precision: Any) -> Score:
        return Score("STS17", "cosine_spearman", value, 1, 0, 0, 9, True, dim, precision)

    rows = {
        "tiny, 32 x float32": [score(80, 32, "float32")],
        "tiny, 8 x binary": [score(60, 8, "binary")],
        "other, 16 x int8": [score(50, 16, "int8")],
    }
    assert score_cells(rows, size_columns(rows)) == [
        ["model", "STS17", "mean", "bytes", "of whole"],
        ["tiny, 32 x float32", "80.0", "80.0", "128", "100.0 %"],
        ["tiny, 8 x binary", "60.0", "60.0", "1", "75.0 %"],
        ["other, 16 x int8", "50.0", "50.0", "16", "100.0 %"],
    ]


def test_mistakes_are_one_clear_line(model: SentenceTransformer) -> None:
    for options in ({"dim": 8}, {"precision": "binary"}):
        with pytest.raises(UserError, match="leave out dim and precision"):
            Vectors(sizes=True, **options)
    with pytest.raises(UserError, match="precision 'int4' is not one of"):
        Vectors(precision="int4")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="dim is 33; the embeddings have 32"):
        Vectors(dim=33).formats(model, Row("tiny", lambda: model))
    assert Vectors().formats(model, Row("tiny", lambda: model)) == []
