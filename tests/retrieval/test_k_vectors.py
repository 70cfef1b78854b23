"""An index of k vectors per text: MaxSim as by brute force, and all else as with one vector."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from typer.testing import CliRunner

import llm2comp
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.inference.embed import embed
from llm2comp.inference.load import load
from llm2comp.model import encoder
from llm2comp.model.backbone import load_backbone
from llm2comp.model.memory_tokens import add_memory_tokens
from llm2comp.model.multi_vector.late_interaction import as_multi_vector
from llm2comp.model.multi_vector.max_sim import MaxSim
from llm2comp.recipe_parts import Memory
from llm2comp.retrieval import index as indexing
from llm2comp.retrieval import k_vectors
from llm2comp.retrieval import store as storing
from llm2comp.retrieval.about import About
from llm2comp.retrieval.index import Changes, Index, build
from llm2comp.retrieval.rows import Kinds, Row
from llm2comp.retrieval.store import Store
from retrieval.conftest import unit

K, PRECISIONS = 4, ("float16", "int8", "binary")
PROMPTS = {"query": "find: ", "document": "text: "}


def make_encoder(backbone: Path, folder: Path, tokens: int) -> Path:
    model, tokenizer = load_backbone(str(backbone))
    with torch.random.fork_rng():
        extended = add_memory_tokens(model, tokenizer, Memory(tokens=tokens), seed=0)
    made = encoder.assemble(model, extended, tokens, causal=True, prompts=PROMPTS, max_length=64)
    made.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def folder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tiny_backbone, tmp_path_factory.mktemp("four") / "encoder", K)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> SentenceTransformer:
    return load(folder, "float32")


@pytest.fixture(scope="module")
def stock(folder: Path) -> MultiVectorEncoder:
    return as_multi_vector(SentenceTransformer(str(folder), device="cpu"), "tiny")


@pytest.fixture
def corpus(tmp_path: Path, sentences: list[str]) -> Path:
    rows = [{"id": f"s{n}", "text": text, "n": n} for n, text in enumerate(sentences)]
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def brute_force(stock: MultiVectorEncoder, query: str, texts: list[str]) -> np.ndarray:
    """The MaxSim of stock sentence-transformers, whose sum over vectors is a mean here."""
    queries, documents = stock.encode_query([query]), stock.encode_document(texts)
    return (stock.similarity(queries, documents)[0] / K).numpy()


def test_a_search_in_a_file_is_the_max_sim_of_the_stock_encoder(
    folder: Path, loaded: SentenceTransformer, stock: Any, corpus: Path, sentences: list[str]
) -> None:
    before = loaded.encode(sentences)
    for query in sentences[:3]:
        expected = brute_force(stock, query, sentences)
        for model, options in ((folder, {"dtype": "float32"}), (loaded, {})):
            hits = llm2comp.search(model, corpus, query, top_k=8, vectors="k", **options)
            np.testing.assert_allclose(
                [hit.score for hit in hits], expected[[hit.row for hit in hits]], atol=1e-5
            )
            assert [hit.score for hit in hits] == sorted([hit.score for hit in hits], reverse=True)
            assert {hit.row for hit in hits} == set(range(8))
    np.testing.assert_array_equal(loaded.encode(sentences), before)  # the model is as it was


@pytest.mark.parametrize(("precision", "error"), [("float16", 1e-3), ("int8", 1e-2)])
def test_an_index_has_the_max_sim_of_the_stock_encoder(
    folder: Path, stock: Any, corpus: Path, tmp_path: Path, sentences: list[str],
    precision: Any, error: float,
) -> None:  # fmt: skip
    made = llm2comp.index(
        folder, corpus, tmp_path / "index", vectors="k", precision=precision, dtype="float32"
    )
    assert (made.about.vectors, made.about.precision, made.about.format) == (K, precision, 2)
    for index in (made, llm2comp.open_index(tmp_path / "index", dtype="float32")):
        for query in sentences[:3]:
            expected = brute_force(stock, query, sentences)
            hits = index.search(query, 8)
            rows = [int(hit.id[1:]) for hit in hits]
            assert sorted(rows) == list(range(8))
            np.testing.assert_allclose([hit.score for hit in hits], expected[rows], atol=error)
            assert np.all(np.diff([hit.score for hit in hits]) <= 0)
            assert [hit.metadata for hit in hits] == [{"n": row} for row in rows]


def about_of(precision: str, dim: int, k: int = K) -> About:
    return About(
        format=2, model="none", dim=dim, precision=precision, document=[], query=[], vectors=k
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [16, 13])
def test_stored_vectors_are_what_they_stand_for(precision: str, dim: int) -> None:
    generator = np.random.default_rng(0)
    vectors = unit(generator.standard_normal((50, K, dim)))
    about = about_of(precision, dim)
    packed = k_vectors.pack(vectors.reshape(50, -1), about)
    assert packed.type == k_vectors.field_of(about).type
    numbers = packed.type.list_size * packed.type.value_type.bit_width / (K * dim)
    assert numbers <= {"float16": 16, "int8": 8, "binary": 1.3}[precision]
    table = storing.pa.table({"v": packed}).slice(7, 20)["v"]
    found = k_vectors.unpack(table, about).reshape(20, K, dim)
    whole = vectors[7:27]
    expected = np.sign(whole) / dim**0.5 if precision == "binary" else whole
    atol = {"float16": 1e-3, "int8": 6e-3, "binary": 1e-6}[precision]
    np.testing.assert_allclose(found, expected, atol=atol)
    query = unit(generator.standard_normal((K, dim))).reshape(-1)
    expected = MaxSim(K)(torch.from_numpy(query[None]), torch.from_numpy(found.reshape(20, -1)))[0]
    np.testing.assert_allclose(k_vectors.scores(query, table, about), expected, atol=1e-6)
    assert len(k_vectors.scores(query, table.slice(0, 0), about)) == 0


def texts_of_clusters(
    count: int, dim: int, *, binary: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of an index, and of 20 queries near a text; the one vector is the mean of the k."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((count // 50, 1, dim))
    own = generator.standard_normal((count, 1, dim)) + centres[np.arange(count) % len(centres)]
    places = generator.standard_normal((1, K, dim))
    vectors = unit(own + places + 0.7 * generator.standard_normal((count, K, dim)))
    queries = unit(vectors[:20] + 0.1 * generator.standard_normal((20, K, dim)))
    texts, asked = (
        np.hstack([unit(some.mean(axis=1)), some.reshape(len(some), -1)])
        for some in (vectors, queries)
    )
    if binary:
        vectors = np.sign(vectors) / dim**0.5
    cosines = queries @ vectors.reshape(-1, dim).T
    return texts, asked, cosines.reshape(20, K, count, K).max(axis=3).mean(axis=1)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize(
    ("precision", "least"), [("float16", 0.98), ("int8", 0.96), ("binary", 0.9)]
)
def test_the_nearest_by_one_vector_are_ranked_by_max_sim(
    tmp_path: Path, precision: str, least: float, indexed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recall is that of brute force over the vectors, or over their signs."""
    if indexed:
        monkeypatch.setattr(storing, "EXACT_UP_TO", 1_000)
    store = Store.create(tmp_path, about_of(precision, 32))
    texts, queries, scores = texts_of_clusters(3_000, 32, binary=precision == "binary")
    rows = [Row(str(number), "", {"half": number % 2}) for number in range(3_000)]
    for first in range(0, 3_000, 1_000):
        store.put(rows[first : first + 1_000], texts[first : first + 1_000], Kinds({"half": "int"}))
    store.optimize()
    assert any(one.columns == ["vector"] for one in store.table.list_indices()) == indexed
    store.delete([str(number) for number in range(100, 200)])
    scores[:, 100:200] = -1
    for where in (None, "half = 1"):
        allowed = np.where(np.arange(3_000) % 2 >= (where is not None), scores, -2)
        hits = 0
        for query, own in zip(queries, allowed, strict=True):
            found = store.nearest(query, 10, where)
            ids = [int(row.id) for row, _ in found]
            assert len(set(ids)) == 10
            hits += len(set(ids) & set(np.argsort(-own)[:10].tolist()))
            if precision != "binary":
                np.testing.assert_allclose([score for _, score in found], own[ids], atol=1e-2)
        assert hits / 200 >= least, f"recall is {hits / 200}"


def test_it_is_brought_up_to_date_and_continued(
    loaded: SentenceTransformer, stock: Any, corpus: Path, tmp_path: Path, sentences: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(indexing, "CHUNK", 3)
    put = indexing.Store.put

    def stopping(self: Any, rows: Any, *rest: Any) -> None:
        if rows[0].id == "s6":
            raise KeyboardInterrupt
        put(self, rows, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(indexing.Store, "put", stopping)
        with pytest.raises(KeyboardInterrupt):
            build(loaded, str(corpus), tmp_path / "index", vectors="k")
    assert len(Index(tmp_path / "index", loaded)) == 6
    index, changes = build(loaded, str(corpus), tmp_path / "index")  # it keeps its vectors
    assert (len(index), changes) == (8, Changes(2, 0, 6))
    texts = [*sentences]
    texts[2] = "Whales sing in the sea."
    assert index.add([{"id": "s2", "text": texts[2], "n": 2}]) == Changes(0, 1, 0)
    assert index.delete(["s0"]) == 1
    hits = index.search("whales", 8, where="n < 7")
    rows = [int(hit.id[1:]) for hit in hits]
    assert sorted(rows) == [1, 2, 3, 4, 5, 6]
    expected = brute_force(stock, "whales", texts)[rows]
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-2)
    both = index.search(texts[2], 3, by="hybrid")
    assert both[0].id == "s2"
    assert both[0].score == pytest.approx(2 / 61)
    assert [hit.id for hit in index.search("Whales sing", 1, by="text")] == ["s2"]


def test_an_index_of_one_vector_is_as_before(
    loaded: SentenceTransformer, corpus: Path, tmp_path: Path
) -> None:
    """Also one that an older version made, which says nothing of k vectors."""
    index, _ = build(loaded, str(corpus), tmp_path / "index")
    assert index.about.format == 1
    table = Store(tmp_path / "index").table
    assert table.schema.names == ["id", "text", "vector", "n"]
    old = json.loads(table.schema.metadata[b"llm2comp"])
    assert old.pop("vectors") == 1
    assert About.model_validate(old) == index.about
    expected = (
        embed(loaded, ["whales"], 1, "query")
        @ embed(loaded, [hit.text for hit in index.search("whales", 8)], 8, "document").T
    )
    found = [hit.score for hit in index.search("whales", 8)]
    np.testing.assert_allclose(found, expected[0], atol=1e-5)


def test_mistakes_are_one_line(
    folder: Path, loaded: SentenceTransformer, tiny_backbone: Path, corpus: Path, tmp_path: Path
) -> None:
    one = make_encoder(tiny_backbone, tmp_path / "one", 1)
    out = tmp_path / "index"
    calls: list[tuple[str, Callable[[], object]]] = [
        ("one memory token", lambda: llm2comp.index(one, corpus, out, vectors="k")),
        ("no memory tokens", lambda: llm2comp.index("minilm", corpus, out, vectors="k")),
        ("dim is for one vector", lambda: build(loaded, str(corpus), out, vectors="k", dim=8)),
        (
            "'float32'.*is not one of float16, int8, binary",
            lambda: build(loaded, str(corpus), out, vectors="k", precision="float32"),
        ),
        (
            "'float16'.*is not one of float32, int8, binary",
            lambda: build(loaded, str(corpus), out, precision="float16"),
        ),
        ("neither 'one' nor 'k'", lambda: build(loaded, str(corpus), out, vectors="two")),  # type: ignore[arg-type]
        ("one memory token", lambda: llm2comp.search(one, corpus, "whales", vectors="k")),
        ("no memory tokens", lambda: llm2comp.search("minilm", corpus, "whales", vectors="k")),
        (
            "merges memory tokens.*without merging",
            lambda: llm2comp.search(folder, corpus, "x", vectors="k", merge_threshold=0.9),
        ),
        (
            "dim and precision is for one vector",
            lambda: llm2comp.search(folder, corpus, "x", vectors="k", dim=8, precision="int8"),
        ),
    ]
    for message, call in calls:
        with pytest.raises(UserError, match=message):
            call()
    assert not out.exists()
    llm2comp.encode_file(folder, corpus, tmp_path / "texts.parquet", prompt="document")
    with pytest.raises(UserError, match=r"texts.parquet holds one vector per text, and not 4"):
        llm2comp.search(folder, tmp_path / "texts.parquet", "whales", vectors="k")
    build(loaded, str(corpus), out, vectors="k")
    for options in ({"vectors": "one"}, {"precision": "float16"}, {"dim": 8}):
        with pytest.raises(UserError, match="precision int8 and vectors k; leave these"):
            build(loaded, str(corpus), out, **options)  # type: ignore[arg-type]


def test_the_command_needs_the_flag_only_to_make_an_index(
    folder: Path, corpus: Path, tmp_path: Path, sentences: list[str], stock: Any
) -> None:
    def run(*arguments: object, status: int = 0) -> str:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == status, result.output
        return result.output

    exact = ("--dtype", "float32")
    how = ("--vectors", "k", "--precision", "float16")
    run("index", folder, corpus, "--out", tmp_path / "i", *how, *exact)
    said = run("search", tmp_path / "i", sentences[1], "--top-k", 1, *exact)
    best = brute_force(stock, sentences[1], sentences)
    assert f"{best.max():.3f}  s{best.argmax()}  {sentences[best.argmax()]}" in said
    said = run("search", folder, corpus, sentences[1], "--top-k", 1, "--vectors", "k", *exact)
    assert f"{best.max():.3f}  {sentences[best.argmax()]}" in said
    said = run("search", tmp_path / "i", "whales", "--vectors", "k", status=2)
    assert "--vectors are for files of texts" in said
