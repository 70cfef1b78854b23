"""The table of an index: exact rows, exact filters, and nearly exact search among many."""

from collections.abc import Callable

import numpy as np
import pytest

from llm2comp.retrieval import store as storing
from llm2comp.retrieval.rows import Kinds, Row
from llm2comp.retrieval.store import Store
from retrieval.conftest import unit

KINDS = Kinds({"year": "int", "lang": "str", "price": "float", "new": "bool"})


def make_rows(count: int, seed: int = 0) -> list[Row]:
    generator = np.random.default_rng(seed)
    return [
        Row(
            f"it's {number}",
            f'text {number} of é «quotes» \' and "more"',
            {
                "year": None if number % 7 == 3 else int(generator.integers(1950, 2030)),
                "lang": ("de", "en", "日本")[number % 3],
                "price": float(generator.random()),
                "new": bool(number % 2),
            },
        )
        for number in range(count)
    ]


def test_rows_come_back_as_they_were(new_store: Callable[..., Store]) -> None:
    store, rows = new_store(8), make_rows(50)
    store.put(rows, unit(np.random.default_rng(0).standard_normal((50, 8))), KINDS)
    assert store.rows([row.id for row in rows]) == {row.id: row for row in rows}
    assert store.rows([]) == {}
    assert store.kinds == KINDS
    assert len(store) == 50


def test_changes_by_id_are_exact(new_store: Callable[..., Store]) -> None:
    generator = np.random.default_rng(1)
    store, rows = new_store(8), make_rows(300)
    wanted: dict[str, tuple[Row, np.ndarray]] = {}
    for step in range(12):
        if step % 3 == 2:
            gone = [rows[n].id for n in generator.choice(300, 40, replace=False)]
            assert store.delete([*gone, "no such id"]) == sum(one in wanted for one in gone)
            for one in gone:
                wanted.pop(one, None)
        else:
            chosen = generator.choice(300, 80, replace=False)
            changed = [Row(rows[n].id, f"{rows[n].text} {step}", rows[n].metadata) for n in chosen]
            vectors = unit(generator.standard_normal((80, 8)))
            store.put(changed, vectors, KINDS)
            wanted |= {row.id: (row, vector) for row, vector in zip(changed, vectors, strict=True)}
        if step == 7:
            store.optimize()
        assert len(store) == len(wanted)
    assert store.rows([row.id for row in rows]) == {one: row for one, (row, _) in wanted.items()}
    for row, vector in list(wanted.values())[:20]:
        (found, score), *_ = store.nearest(vector, 1)
        assert found == row
        assert score == pytest.approx(1, abs=1e-5)


FILTERS = {
    "year >= 1990": lambda m: m["year"] is not None and m["year"] >= 1990,
    "lang = '日本'": lambda m: m["lang"] == "日本",
    "new and price < 0.25": lambda m: m["new"] and m["price"] < 0.25,
    "year is null or lang in ('de', 'fr')": lambda m: m["year"] is None or m["lang"] == "de",
    "price > 2": lambda m: False,
}


@pytest.mark.parametrize("indexed", [False, True])
def test_filters_are_those_of_brute_force(
    new_store: Callable[..., Store], indexed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if indexed:
        monkeypatch.setattr(storing, "EXACT_UP_TO", 100)
    generator = np.random.default_rng(2)
    store, rows = new_store(16), make_rows(1_000)
    vectors = unit(generator.standard_normal((1_000, 16)))
    store.put(rows, vectors, KINDS)
    store.optimize()
    query = unit(generator.standard_normal((1, 16)))[0]
    for where, meets in FILTERS.items():
        products = [
            (float(vector @ query), row.id)
            for row, vector in zip(rows, vectors, strict=True)
            if meets(row.metadata)
        ]
        best = [one for _, one in sorted(products, reverse=True)[:8]]
        assert [row.id for row, _ in store.nearest(query, 8, where)] == best
        found = store.matching("text 5 of", 1_000, where)
        assert {row.id for row, _ in found} == {one for _, one in products}
        both = store.hybrid("text 5 of", query, 1_000, where)
        assert {row.id for row, _ in both} == {one for _, one in products}


def clustered(count: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(dim)
    spectrum = (1 + np.arange(dim)) ** -0.5
    centres = generator.standard_normal((count // 50, dim)) * spectrum
    texts = centres[generator.integers(len(centres), size=count)]
    texts = texts + 0.7 * generator.standard_normal((count, dim)) * spectrum
    queries = texts[:50] + 0.5 * generator.standard_normal((50, dim)) * spectrum
    return unit(texts), unit(queries)


# The library draws the rotation of quantised vectors anew for each index, so some may be missed.
@pytest.mark.parametrize(
    ("precision", "least"), [("float32", 1), ("int8", 0.998), ("binary", 0.96)]
)
def test_quantised_search_finds_what_exact_search_finds(
    new_store: Callable[..., Store], precision: str, least: float
) -> None:
    count = storing.EXACT_UP_TO + 1_000
    store = new_store(64, precision)
    texts, queries = clustered(count, 64)
    rows = [Row(str(number), "") for number in range(count)]
    store.put(rows[:-500], texts[:-500], Kinds())
    store.optimize()
    assert any(one.columns == ["vector"] for one in store.table.list_indices())
    store.put(rows[-500:], texts[-500:], Kinds())  # is found before it is in the index
    store.delete([str(number) for number in range(100, 200)])
    products = queries @ texts.T
    products[:, 100:200] = -1
    for count in (1, 10, 100):  # the first of one is that of ten
        hits = 0
        for query, own in zip(queries, products, strict=True):
            exact = np.argsort(-own)[:count]
            found = store.nearest(query, count)
            hits += len({int(row.id) for row, _ in found} & set(exact.tolist()))
            for row, score in found:
                assert score == pytest.approx(own[int(row.id)], abs=1e-5)
        assert hits / (count * len(queries)) >= least - 1e-9, count


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
def test_dimensions_that_are_not_divisible_by_8_are_searched_exactly(
    new_store: Callable[..., Store], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing, "EXACT_UP_TO", 1_000)
    store = new_store(12, precision)
    texts, queries = clustered(3_000, 12)
    store.put([Row(str(number), "") for number in range(3_000)], texts, Kinds())
    store.optimize()
    assert any(one.columns == ["vector"] for one in store.table.list_indices())
    for query, own in zip(queries, queries @ texts.T, strict=True):
        found = store.nearest(query, 10)
        assert [int(row.id) for row, _ in found] == np.argsort(-own)[:10].tolist()
        assert [score for _, score in found] == pytest.approx(np.sort(-own)[:10] * -1, abs=1e-5)


def test_words_of_all_scripts_are_found(new_store: Callable[..., Store]) -> None:
    store = new_store(4)
    texts = ["日本語の文章です", "C++ error E1234-77", "naïve café", "whales", "x" * 100]
    rows = [Row(str(number), text) for number, text in enumerate(texts)]
    store.put(rows, unit(np.ones((5, 4))), Kinds())
    for step in range(2):  # before and after the index of words is made
        if step:
            store.optimize()
        for query, wanted in [("文章", 0), ("e1234", 1), ("cafe", 2), ("x" * 100, 4)]:
            assert [row.id for row, _ in store.matching(query, 5)] == [str(wanted)], query
        assert store.matching("whale", 5) == []
        assert store.matching('" AND ( -whales', 5)[0][0].id == "3"
