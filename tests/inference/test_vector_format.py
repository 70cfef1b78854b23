"""Vectors of fewer dimensions and bits: stored as in sentence-transformers, and searched right."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.inference.embed import embed
from llm2comp.inference.vector_format import (
    Embeddings,
    VectorFormat,
    require_dim,
    require_precision,
    truncate,
)


def unit(rows: int, dim: int, seed: int = 0) -> Embeddings:
    drawn = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def formats(embeddings: Embeddings) -> dict[str, VectorFormat]:
    dim = embeddings.shape[1]
    ranges = np.stack([embeddings.min(axis=0), embeddings.max(axis=0)])
    return {
        "float32": VectorFormat(dim),
        "float16": VectorFormat(dim, "float16"),
        "int8": VectorFormat(dim, "int8", ranges),
        "uint8": VectorFormat(dim, "uint8", ranges),
        "binary": VectorFormat(dim, "binary"),
    }


@pytest.mark.parametrize("dim", [1, 8, 31])
def test_truncated_embeddings_are_those_of_stock_sentence_transformers(
    tiny_backbone: Path, sentences: list[str], dim: int
) -> None:
    model = baselines.build("weighted-mean", tiny_backbone)
    stock = SentenceTransformer(modules=list(model.children()), device="cpu")
    expected = stock.encode(sentences, truncate_dim=dim, normalize_embeddings=True)
    ours = truncate(embed(model, sentences, 32), require_dim(model, dim))
    assert ours.shape == (len(sentences), dim)
    assert np.abs(ours - expected).max() < 1e-6


def test_whole_embeddings_and_zeros_stay_as_they_are() -> None:
    rows = 3 * unit(2, 8)
    assert truncate(rows, 8) is rows
    assert not truncate(np.zeros((1, 8), np.float32), 4).any()


@pytest.mark.parametrize("precision", ["int8", "uint8", "binary"])
def test_stored_numbers_are_those_of_quantize_embeddings(precision: str) -> None:
    embeddings = unit(50, 20)
    form = formats(embeddings)[precision]
    expected = quantize_embeddings(embeddings, precision, ranges=form.ranges)  # type: ignore[arg-type]
    stored = form.store(embeddings)
    assert stored.dtype == form.dtype
    assert stored.shape == (50, form.columns)
    assert np.array_equal(stored, expected)
    assert stored.nbytes == 50 * form.bytes


def test_bytes_of_a_vector() -> None:
    sizes = {name: form.bytes for name, form in formats(unit(3, 100)).items()}
    assert sizes == {"float32": 400, "float16": 200, "int8": 100, "uint8": 100, "binary": 13}


@given(st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_restored_values_are_within_half_a_step(dim: int, seed: int) -> None:
    embeddings = unit(30, dim, seed)
    for name, form in formats(embeddings).items():
        restored = form.restore(form.store(embeddings))
        assert restored.shape == embeddings.shape
        assert restored.dtype == np.float32
        if name == "binary":
            assert np.array_equal(np.sign(restored), np.where(embeddings > 0, 1, -1))
            assert np.linalg.norm(restored, axis=1) == pytest.approx(1)
        elif form.ranges is not None:
            step = (form.ranges[1] - form.ranges[0]) / 255
            # The largest value of all would begin a step of its own; it is in the last one.
            assert (np.abs(restored - embeddings) <= 0.501 * step + 1e-6).all()
        else:
            assert np.abs(restored - embeddings).max() < 1e-3


def test_values_outside_of_the_ranges_become_the_nearest_end() -> None:
    form = VectorFormat(2, "int8", np.array([[-0.5, 0.2], [0.5, 0.2]], np.float32))
    restored = form.restore(form.store(np.array([[-2, 9], [2, -9]], np.float32)))
    assert restored == pytest.approx(np.array([[-0.5, 0.2], [0.5, 0.2]]), abs=0.01)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "uint8"])
def test_similarities_are_cosines_of_floats_and_restored_vectors(precision: str) -> None:
    queries, texts = 2 * unit(3, 24, 1), unit(40, 24)
    form = formats(texts)[precision]
    found = form.similarities(queries, form.store(texts), top_k=2)
    expected = torch.nn.functional.cosine_similarity(
        torch.from_numpy(queries)[:, None],
        torch.from_numpy(form.restore(form.store(texts)))[None],
        dim=-1,
    )
    assert found == pytest.approx(expected.numpy(), abs=1e-5)
    assert np.abs(found - queries @ texts.T / 2).max() < 0.02


def test_binary_candidates_have_the_smallest_hamming_distance_and_are_rescored() -> None:
    queries, texts = unit(3, 24, 1), unit(40, 24)
    form = VectorFormat(24, "binary")
    found = form.similarities(queries, form.store(texts), top_k=2)
    signs = np.where(texts > 0, 1.0, -1.0)
    for row, query in enumerate(queries):
        distances = (np.sign(query) != signs).sum(axis=1)
        (candidates,) = np.nonzero(found[row] >= -1)
        others = np.setdiff1d(np.arange(40), candidates)
        assert len(candidates) == 8
        assert distances[candidates].max() <= distances[others].min()
        cosines = signs[candidates] @ query / np.linalg.norm(query) / np.sqrt(24)
        assert found[row, candidates] == pytest.approx(cosines, abs=1e-5)
        assert np.array_equal(np.argsort(-found[row, others], kind="stable"),
                              np.argsort(distances[others], kind="stable"))  # fmt: skip


def test_rescoring_finds_more_than_the_signs_alone() -> None:
    """The query's floats break the ties between texts with as many common bits."""
    queries, texts = unit(200, 32, 1), unit(500, 32)
    form = VectorFormat(32, "binary")
    best = (queries @ texts.T).argmax(axis=1)
    rescored = form.similarities(queries, form.store(texts), top_k=10).argmax(axis=1)
    signs = (np.sign(queries) @ np.sign(texts).T).argmax(axis=1)
    assert (rescored == best).mean() > 1.4 * (signs == best).mean()


def test_mistakes_are_one_clear_line(tiny_backbone: Path) -> None:
    model = baselines.build("weighted-mean", tiny_backbone)
    for dim in (0, -1, 33):
        with pytest.raises(UserError, match=f"dim is {dim}; the embeddings have 32 dimensions"):
            require_dim(model, dim)
    with pytest.raises(UserError, match="precision 'int4' is not one of float32, float16, int8"):
        require_precision("int4")
