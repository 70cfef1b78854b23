import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from llm2comp.analysis import measure
from llm2comp.data import mixture, sample
from llm2comp.errors import UserError
from llm2comp.evaluation import baselines


def lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_texts_and_pairs_are_drawn_by_a_seed(tmp_path: Path) -> None:
    texts = lines(tmp_path / "texts.jsonl", [{"text": f"text {i}"} for i in range(50)])
    some = sample.draw(texts, 20, seed=0)
    assert some == sample.draw(texts, 20, seed=0) != sample.draw(texts, 20, seed=1)
    assert len(set(some.texts)) == 20
    assert not some.positives
    assert some.note.startswith("20 of 50 texts of ")
    rows = [{"anchor": f"a {i}", "positive": f"p {i}", "score": i % 6} for i in range(60)]
    pairs = sample.draw(lines(tmp_path / "pairs.jsonl", rows), 100, seed=0)
    assert pairs.total == len(pairs.texts) == 20  # of score 4 and 5
    assert all(a.replace("a", "p") == p for a, p in zip(pairs.texts, pairs.positives, strict=True))
    assert pairs.note.startswith("all 20 pairs of ")
    with pytest.raises(UserError, match="neither texts"):
        sample.draw(lines(tmp_path / "other.jsonl", [{"positive": "x"}]), 5, seed=0)
    low = [row | {"score": 0.9} for row in rows]
    with pytest.raises(UserError, match="no pair has a score of 4 or more"):
        sample.draw(lines(tmp_path / "low.jsonl", low), 5, seed=0)


def test_scores_of_plain_texts_are_not_looked_at(tmp_path: Path) -> None:
    """FineWeb-Edu has a score of every text, which is none of a pair."""
    rows: list[dict[str, object]] = [{"text": f"t{i}", "score": i % 6} for i in range(60)]
    drawn = sample.draw(lines(tmp_path / "texts.jsonl", rows), 100, seed=0)
    assert sorted(drawn.texts) == sorted(f"t{i}" for i in range(60))
    assert drawn.note.startswith("all 60 texts of ")
    rows = [{"text": "one", "score": 0.5}, {"text": "two", "score": "good"}, {"text": "three"}]
    assert sample.draw(lines(tmp_path / "odd.jsonl", rows), 100, seed=0).total == 3


def test_the_note_of_a_large_source_says_that_only_its_first_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixture.shuffle, "__defaults__", (10,))
    texts = lines(tmp_path / "texts.jsonl", [{"text": f"text {i}"} for i in range(50)])
    some = sample.draw(texts, 3, seed=0)
    assert some.note.startswith("3 of the first 13 texts of ")
    assert all(int(text.removeprefix("text ")) < 13 for text in some.texts)
    assert sample.draw(texts, 45, seed=0).note.startswith("45 of 50 texts of ")


def test_an_encoder_is_measured_with_its_memory_tokens(encoder: Path, sentences: list[str]) -> None:
    model = SentenceTransformer(str(encoder))
    given = sample.Sample("s", sentences, sentences[::-1], 8)
    found = measure.analyze_model(model, "tiny", given, batch_size=3)
    vectors = model.encode_query(sentences)
    assert (found.n, found.dimension, found.compared) == (8, 32, 8)
    assert found.spectrum.singular_values == pytest.approx(
        np.linalg.svd(vectors, compute_uv=False).tolist() + [0] * 24, abs=1e-5
    )
    others = model.encode_document(sentences[::-1])
    assert found.alignment == pytest.approx(np.square(vectors - others).sum(1).mean(), abs=1e-5)
    assert found.memory is not None
    assert np.array(found.memory.cosines).shape == (4, 4)
    again = measure.analyze_model(model, "tiny", given, batch_size=8)
    assert again.memory is not None
    assert again.memory.redundancy == pytest.approx(found.memory.redundancy, abs=1e-5)
    assert not model[0]._forward_hooks


def test_an_encoder_without_memory_tokens_is_measured(
    tiny_backbone: Path, sentences: list[str]
) -> None:
    model = baselines.build("mean", tiny_backbone)
    found = measure.analyze_model(model, "mean", sample.Sample("s", sentences, [], 8))
    assert found.memory is None
    assert found.alignment is None


def test_embeddings_of_a_file_are_measured_like_those_in_memory(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((9000, 12)).astype(np.float32) * 7
    np.save(tmp_path / "v.npy", rows)
    found = measure.analyze_embeddings(tmp_path / "v.npy", "v")
    assert (found.n, found.compared) == (9000, 5000)
    assert found.spectrum.rankme == pytest.approx(12, rel=0.01)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    values = np.linalg.svd(unit.astype(np.float64), compute_uv=False)
    assert found.spectrum.singular_values == pytest.approx(values.tolist(), rel=1e-6)
    found.write(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["spectrum"]["components_90"] >= 10


def test_a_file_in_half_precision_is_measured_in_float32(tmp_path: Path) -> None:
    """Of texts that have much in common, whose cosines are nearly alike."""
    rows = np.random.default_rng(0).standard_normal((500, 64)) + 3
    analyses = []
    for dtype in (np.float16, np.float32):
        np.save(tmp_path / "v.npy", rows.astype(np.float16).astype(dtype))
        analyses.append(measure.analyze_embeddings(tmp_path / "v.npy", "v"))
    half, single = analyses
    assert half.hubness == single.hubness
    assert half.uniformity == single.uniformity


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones((1, 4)), "need at least two"),
        (np.ones(4), "not rows of floats"),
        (np.array([["a"], ["b"]]), "not rows of floats"),
        (np.full((4, 2), np.nan), "not finite"),
    ],
)
def test_what_cannot_be_measured_is_an_error(
    rows: np.ndarray, message: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "v.npy", rows)
    with pytest.raises(UserError, match=message):
        measure.analyze_embeddings(tmp_path / "v.npy", "v")
    (tmp_path / "w.npy").write_text("no array")
    with pytest.raises(UserError, match="is not a NumPy array"):
        measure.analyze_embeddings(tmp_path / "w.npy", "w")
