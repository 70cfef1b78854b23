"""Search: the nearest texts of a file, in order, with the prompts of queries and documents."""

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.inference import encode_file as encoding
from llm2comp.inference.search import search, search_all


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> SentenceTransformer:
    return baselines.build("weighted-mean", tiny_backbone)


@pytest.fixture
def passages(tmp_path: Path, sentences: list[str]) -> Path:
    file = tmp_path / "passages.txt"
    file.write_text("".join(f"{text}\n" for text in sentences), encoding="utf-8")
    return file


def test_hits_are_the_largest_cosines_and_a_text_finds_itself(
    model: SentenceTransformer,
    passages: Path,
    sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoding, "CHUNK_BATCHES", 1)
    embeddings = model.encode(sentences)
    for index, hits in enumerate(search_all(model, passages, sentences, top_k=5, batch_size=3)):
        cosines = embeddings @ embeddings[index]
        assert [hit.row for hit in hits] == np.argsort(-cosines)[:5].tolist()
        assert [hit.text for hit in hits] == [sentences[hit.row] for hit in hits]
        assert hits[0].row == index
        assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_query_and_passages_get_their_own_prompts(
    model: SentenceTransformer, passages: Path, sentences: list[str]
) -> None:
    before = model.prompts
    model.prompts = {"query": "Question: ", "document": "Passage: "}
    try:
        (hit,) = search(model, passages, "whales", top_k=1)
        query = model.encode("Question: whales")
        cosines = model.encode([f"Passage: {text}" for text in sentences]) @ query
    finally:
        model.prompts = before
    assert hit.row == int(cosines.argmax())
    assert hit.score == pytest.approx(float(cosines.max()), abs=1e-5)


def test_equal_texts_come_in_the_order_of_the_file(
    model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "CHUNK_BATCHES", 1)
    file = tmp_path / "same.txt"
    file.write_text("same\n" * 5)
    hits = search(model, file, "same", top_k=9, batch_size=2)
    assert [hit.row for hit in hits] == [0, 1, 2, 3, 4]


def test_mistakes_are_one_clear_line(
    model: SentenceTransformer, passages: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="at least 1"):
        search(model, passages, "whales", top_k=0)
    (tmp_path / "none.txt").touch()
    with pytest.raises(UserError, match="no texts in it"):
        search(model, tmp_path / "none.txt", "whales")
    with pytest.raises(UserError, match="no query"):
        search_all(model, passages, [])
