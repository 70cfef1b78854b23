"""Rows with several positives and negatives: no positive of a query is ever its negative."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from llm2comp.data.drawn.pair_file import negatives_of
from llm2comp.data.drawn.rows import Rows, drawn_once
from llm2comp.data.pairs import write_pairs
from llm2comp.recipe import DataSource, Supervised
from llm2comp.training.supervised import DistinctTexts


def draw(folder: Path, rows: list[dict[str, Any]], steps: int = 1, **fields: object) -> Rows:
    path = folder / "a.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = DataSource.model_validate({"source": str(path)} | fields)
    stage = Supervised(data=[source], steps=steps, batch_size=8, learning_rate=1.0, eval_pairs=0)
    write = partial(write_pairs, stage=stage, seed=0, on_bad_row="fail")
    return drawn_once(folder / "work", stage, 0, "fail", write)


def only(rows: Rows) -> Dataset:
    (dataset,) = rows.train.values()
    return dataset


@pytest.mark.parametrize("negatives", [1, 3, 4, 20])
def test_every_negative_of_a_row_is_used_once(tmp_path: Path, negatives: int) -> None:
    rows = [
        {"anchor": f"q{i}", "positive": f"p{i}", "negative": [f"n{i}-{j}" for j in range(10)]}
        for i in range(4)
    ]
    dataset = only(draw(tmp_path, rows, steps=10, negatives=negatives))
    assert len(dataset) == 4 * -(-10 // negatives)
    found = [row["negative"] for row in dataset]
    texts = [one for row in found for one in (row if isinstance(row, list) else [row])]
    assert sorted(texts) == sorted(f"n{i}-{j}" for i in range(4) for j in range(10))
    most = min(negatives, 10)
    assert negatives_of(dataset) == (10 % negatives or most, most)


def test_a_negative_that_is_a_positive_of_its_query_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llm2comp")
    rows: list[dict[str, Any]] = [
        {"anchor": "q", "positive": ["one", "two"], "negative": ["n1", " two"]},  # in the row
        {"anchor": "q", "positive": "three", "negative": ["n2", "café"]},  # in another row
        {"anchor": "q", "positive": "cafe\u0301"},
        {"anchor": "other", "positive": "four", "negative": ["three"]},  # of another query
    ]
    rows += [{"anchor": f"z{i}", "positive": f"z{i}+"} for i in range(20)]
    drawn = draw(tmp_path, rows, steps=5, negatives=2)
    found = {row["positive"]: row["negative"] for row in only(drawn) if row["negative"]}
    assert found == {"one": ["n1"], "two": ["n1"], "three": ["n2"], "four": ["three"]}
    assert drawn.summary["false_negatives"] == {str(tmp_path / "a.jsonl"): 2}
    assert f"{tmp_path / 'a.jsonl'}: left out 2 negatives that are positives of their query" in (
        caplog.messages
    )


def test_a_positive_of_a_query_is_no_other_rows_text_in_its_batch(tmp_path: Path) -> None:
    """Also one that was not drawn itself: it is known from the list of a row that was."""
    rows: list[dict[str, Any]] = [
        {"anchor": "q", "positive": ["one", "shared", "shared too"]},
        {"anchor": "r", "positive": ["two", "shared"]},
        {"anchor": "s", "positive": "three", "negative": "shared too"},
    ]
    rows += [{"anchor": f"z{i}", "positive": f"z{i}+"} for i in range(13)]
    dataset = only(draw(tmp_path, rows, steps=4))
    known = {"q": {"one", "shared", "shared too"}, "r": {"two", "shared"}}
    for seed in range(30):
        for batch in DistinctTexts(dataset, batch_size=8, drop_last=False, seed=seed):
            chosen = [dataset[index] for index in batch]
            for row in chosen:
                others = [one for one in chosen if one is not row]
                texts = {one[c] for one in others for c in ("anchor", "positive", "negative")}
                assert not texts & (known.get(row["anchor"], set()) | {row["positive"]})
    # Two queries that share a positive may be together where neither row has it.
    first, second = (
        next(i for i, row in enumerate(dataset) if row["positive"] == text)
        for text in ("one", "two")
    )
    two = dataset.select([first, second])
    assert len(list(DistinctTexts(two, batch_size=2, drop_last=False))) == 1


def test_rows_that_differ_in_white_space_or_form_alone_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llm2comp")
    rows = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(6)]
    rows += [{"anchor": " q1", "positive": "p1\n"}, {"anchor": "é", "positive": "p7"}]
    rows += [{"anchor": "e\u0301", "positive": "p7"}]
    drawn = draw(tmp_path, rows, steps=2)
    assert len(only(drawn)) == 7
    assert drawn.summary["repeated"] == {str(tmp_path / "a.jsonl"): 2}
    assert f"{tmp_path / 'a.jsonl'}: left out 2 rows that are there twice" in caplog.messages


def test_pairs_alone_have_no_other_columns(tmp_path: Path) -> None:
    rows = [{"anchor": f"q{i}", "positive": f"p{i}", "negative": None} for i in range(8)]
    assert only(draw(tmp_path, rows)).column_names == ["anchor", "positive"]
