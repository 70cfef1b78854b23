"""Rows with several positives and negatives: no positive of a query is ever its negative."""

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from llm2comp.data import sources
from llm2comp.data.drawn.pair_file import POSITIVES, negatives_of
from llm2comp.data.drawn.rows import Rows, drawn_once
from llm2comp.data.pairs import write_pairs
from llm2comp.errors import UserError
from llm2comp.recipe import Supervised
from llm2comp.recipe_parts import DataSource
from llm2comp.training.supervised import DistinctTexts, tell_of_another_order


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


@pytest.mark.parametrize("before", ["instruction", "prompt", "nothing"])
def test_a_query_behind_an_instruction_is_no_negative_of_itself(
    tmp_path: Path, before: str
) -> None:
    """Each query is the positive of another one, as of two questions that are the same."""
    rows: list[dict[str, Any]] = [{"query": f"q{i}", "pos": [f"q{i + 1}"]} for i in range(16)]
    if before == "prompt":
        rows = [row | {"prompt": "find: "} for row in rows]
    instruction = "find" if before == "instruction" else ""
    dataset = only(draw(tmp_path, rows, steps=2, query_instruction=instruction))
    assert (POSITIVES in dataset.column_names) == (before != "nothing")
    queries = [row["anchor"].removeprefix("find:").strip() for row in dataset]
    for seed in range(30):
        for batch in DistinctTexts(dataset, batch_size=8, drop_last=False, seed=seed):
            for index in batch:
                others = {dataset[other]["positive"] for other in batch if other != index}
                assert queries[index] not in others


def test_queries_that_are_no_texts_of_other_rows_are_not_remembered(tmp_path: Path) -> None:
    rows = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(8)]
    dataset = only(draw(tmp_path, rows, query_instruction="find"))
    assert dataset.column_names == ["anchor", "positive"]


@pytest.mark.parametrize("kind", ["score", "label"])
def test_rows_without_in_batch_negatives_share_batches(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Graded relevance: CoSENT compares the documents of a query, and so a batch holds several."""
    rows = [{"anchor": f"q{i}", "positive": f"p{i}-{j}"} for i in range(4) for j in range(10)]
    if kind == "score":
        dataset = only(draw(tmp_path, [row | {"score": i % 5} for i, row in enumerate(rows)], 5))
    else:
        dataset = only(draw(tmp_path, rows, 5, teacher="minilm"))
        dataset = dataset.add_column("label", [[1.0]] * len(dataset))
    assert not caplog.messages, "all batches can be filled"
    sampler = DistinctTexts(
        dataset, batch_size=8, drop_last=False, valid_label_columns=["label", "score"]
    )
    assert [len(batch) for batch in sampler] == [8] * 5
    assert sorted(index for batch in sampler for index in batch) == list(range(40))


@pytest.mark.parametrize("kind", ["scored", "teacher", "plain", "apart"])
def test_a_stage_that_an_older_version_stopped_says_that_its_order_is_new(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(8)]
    if kind in ("scored", "teacher"):
        rows[7]["anchor"] = "q0"
    if kind in ("scored", "apart"):
        rows = [row | {"score": 1.0} for row in rows]
    fields = {"teacher": "minilm"} if kind == "teacher" else {}
    drawn = draw(tmp_path, rows, **fields)
    older = replace(drawn, held_out=Dataset.from_dict({"anchor": [], "positive": []}))
    data = [DataSource.model_validate({"source": str(tmp_path / "a.jsonl")} | fields)]
    stage = Supervised(data=data, steps=1, batch_size=8, learning_rate=1.0)
    tell_of_another_order(older, stage, tmp_path)
    (tmp_path / "checkpoint-2").mkdir()
    tell_of_another_order(drawn, stage, tmp_path)
    assert not caplog.messages, "the stage begins, or this version drew its rows"
    tell_of_another_order(older, stage, tmp_path)
    told = "a.jsonl with a text in common into different batches. They may share one now"
    warned = kind in ("scored", "teacher")
    assert [told in message for message in caplog.messages] == [True] * warned


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
    assert (
        f"{tmp_path / 'a.jsonl'}: left out 2 rows or texts that are there twice" in caplog.messages
    )


def test_pairs_alone_have_no_other_columns(tmp_path: Path) -> None:
    rows = [{"anchor": f"q{i}", "positive": f"p{i}", "negative": None} for i in range(8)]
    assert only(draw(tmp_path, rows)).column_names == ["anchor", "positive"]


def test_repeats_within_a_row_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llm2comp")
    rows: list[dict[str, Any]] = [
        {"anchor": "q", "positive": ["p", "p "], "negative": ["n", "n ", "m", " n"]},
        {"anchor": "r", "positive": "o", "negative": ["k"]},
    ]
    drawn = draw(tmp_path, rows, negatives=4)
    assert sorted((row["positive"], row["negative"]) for row in only(drawn)) == [
        ("o", ["k"]),
        ("p", ["n", "m"]),
    ]
    assert drawn.summary["repeated"] == {str(tmp_path / "a.jsonl"): 3}
    assert f"{tmp_path / 'a.jsonl'}: left out 3 rows or texts that are there twice" in (
        caplog.messages
    )


SAME: list[dict[str, Any]] = [
    {"anchor": "q", "positive": "p", "negative": "q "},
    {"anchor": "café", "positive": ["o", "cafe\u0301"], "negative": ["café", "m", "n"]},
    {"anchor": "r", "positive": " r"},
    {"anchor": "s", "positive": "t"},
]


def test_a_text_that_is_its_own_query_is_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llm2comp")
    drawn = draw(tmp_path, SAME, negatives=2)
    found = {row["anchor"]: (row["positive"], row["negative"]) for row in only(drawn)}
    assert found == {"q": ("p", []), "café": ("o", ["m", "n"]), "s": ("t", [])}
    assert drawn.summary["same_as_query"] == {str(tmp_path / "a.jsonl"): 4}
    assert (
        f"{tmp_path / 'a.jsonl'}: left out 4 positives or negatives that are the query itself"
        in (caplog.messages)
    )


def test_a_query_after_a_prompt_is_still_the_query(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"query": "q", "pos": ["p"], "neg": ["q", "n"], "prompt": "find: "},
        {"query": "r", "pos": ["find: r"], "neg": ["m"], "prompt": "find: "},
    ]
    drawn = draw(tmp_path, rows, query_instruction="")
    assert {row["anchor"]: (row["positive"], row["negative"]) for row in only(drawn)} == {
        "find: q": ("p", "n"),
        "find: r": ("find: r", "m"),
    }
    assert drawn.summary["same_as_query"] == {str(tmp_path / "a.jsonl"): 1}


def test_a_positive_that_is_its_query_is_kept_with_a_teacher_or_a_score(tmp_path: Path) -> None:
    taught = only(draw(tmp_path, SAME, negatives=2, teacher="minilm"))
    assert sorted(row["positive"] for row in taught) == [" r", "cafe\u0301", "o", "p", "t"]
    assert all(row["anchor"] not in row["negative"] for row in taught)
    (tmp_path / "scored").mkdir()
    rows = [
        {"anchor": "q", "positive": "q", "score": 5},
        {"anchor": "r", "positive": "p", "score": 1},
    ]
    assert len(only(draw(tmp_path / "scored", rows))) == 2


def test_a_source_of_such_rows_alone_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"anchor": "q", "positive": "q"}\n{"anchor": "r", "positive": "r "}\n')
    source = DataSource(source=str(file))
    with pytest.raises(
        UserError, match="no row is left, .* positives or negatives that are the qu"
    ):
        sources.require_good_row(source, ["anchor", "positive"], "fail")


def test_who_does_not_count_is_told_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As `llm2comp mine` and `analyze` read rows."""
    caplog.set_level(logging.INFO, "llm2comp")
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in SAME))
    rows = list(sources.rows(DataSource(source=str(file)), ["anchor", "positive"], "fail"))
    assert [row["positive"] for row in rows] == ["p", "o", "t"]
    assert caplog.messages == [
        f"{file}: left out 2 positives or negatives that are the query itself"
    ]
