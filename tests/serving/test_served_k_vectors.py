"""A server of an index with k vectors per text finds what Python finds in it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from running_server import Running
from sentence_transformers import SentenceTransformer

import llm2comp

QUERIES = ["how do whales breathe", "Roman coins", "bread"]


def test_an_index_of_k_vectors_is_searched_by_max_sim(
    serve: Callable[..., Running],
    folder: Path,
    loaded: SentenceTransformer,
    notes: Path,
    tmp_path: Path,
) -> None:
    """The same encoder serves embeddings, and an index of one vector, as it does alone."""
    corpus, several = notes.parent / "corpus.jsonl", tmp_path / "several"
    index = llm2comp.index(folder, corpus, several, vectors="k", dtype="float32")
    running = serve(several, notes)
    listed = running.get("/indexes").json()["data"]
    assert [(one["name"], one["vectors"], one["dimensions"]) for one in listed] == [
        ("several", 4, 32),
        ("notes", 1, 32),
    ]
    alone = llm2comp.open_index(notes, dtype="float32")
    for by in ("vector", "hybrid"):
        scores = {}
        for name, own in (("several", index), ("notes", alone)):
            answer = running.search(QUERIES, index=name, by=by, where="n > 0").json()["results"]
            for query, found in zip(QUERIES, answer, strict=True):
                wanted = own.search(query, by=by, where="n > 0")
                assert [hit["id"] for hit in found] == [hit.id for hit in wanted]
                scores[name] = [hit["score"] for hit in found]
                np.testing.assert_allclose(scores[name], [hit.score for hit in wanted], atol=1e-5)
        assert by == "hybrid" or not np.allclose(scores["several"], scores["notes"], atol=1e-3)
    (model,) = running.get("/v1/models").json()["data"]
    assert (model["dimensions"], model["memory_tokens"]) == (32, 4)
    looked = running.post("/memory-tokens", json={"model": "tiny", "text": "whales"}).json()
    assert np.array(looked["cosines"]).shape == (4, 4)
    for dimensions in (None, 8):
        asked = {"dimensions": dimensions} if dimensions else {}
        answer = running.embed(model="tiny", input=QUERIES, **asked)
        found = np.array([one["embedding"] for one in answer.json()["data"]])
        expected = loaded.encode(QUERIES, truncate_dim=dimensions, normalize_embeddings=True)
        np.testing.assert_allclose(found, expected, atol=1e-5)
