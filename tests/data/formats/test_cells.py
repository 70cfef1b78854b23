"""Lists in the cells of a CSV file."""

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llm2comp.data import sources
from llm2comp.errors import UserError
from llm2comp.evaluation.own_data.pairs import read_pairs
from llm2comp.evaluation.own_data.rows import Retrieval
from llm2comp.recipe_parts import DataSource

TEXTS = ["Owls, alone.", 'a "quoted" [text]', "it's\n[two] lines\\d", "日本語 🦉 \u2028"]


def write(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def read(path: Path, negatives: int = 9) -> list[dict[str, object]]:
    source = DataSource(source=str(path), negatives=negatives)
    return list(sources.rows(source, ["anchor", "positive"], "fail", ["negative"]))


@pytest.mark.parametrize(
    "dump", [json.dumps, repr, lambda texts: f" {json.dumps(texts, indent=1)} "]
)
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]])
def test_a_list_in_a_cell_is_a_list(
    tmp_path: Path, dump: object, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(dump)
    caplog.set_level(logging.INFO, "llm2comp")
    cells = [["anchor", "positive", "negative"], ["q", "p", dump(texts)], ["r", dump(["o"]), "[]"]]
    path = write(tmp_path / "a.csv", cells)
    assert read(path) == [
        {"anchor": "q", "positive": "p", "negative": texts},
        {"anchor": "r", "positive": "o"},
    ]
    assert caplog.messages == [
        f"{path}: column 'negative' holds lists of texts",
        f"{path}: column 'positive' holds lists of texts",
    ]


def test_columns_of_other_tools_may_hold_lists(tmp_path: Path) -> None:
    flag = [["query", "pos", "neg"], ["q", "['a', 'b']", '["n"]']]
    assert [row["positive"] for row in read(write(tmp_path / "a.csv", flag))] == ["a", "b"]
    passages = json.dumps([{"docid": "1", "title": "Wolf", "text": "hunts"}])
    tevatron = [["query", "positive_passages"], ["q", passages]]
    assert read(write(tmp_path / "b.csv", tevatron)) == [{"anchor": "q", "positive": "Wolf hunts"}]
    numbered = [["anchor", "positive", "negative_1", "negative_2"], ["q", "p", '["a"]', "b"]]
    found = read(write(tmp_path / "c.csv", numbered))
    assert found == [{"anchor": "q", "positive": "p", "negative": ["a", "b"]}]


@pytest.mark.parametrize(
    "text",
    ["[deleted]", "[1] see the notes", "[1, 2]", "['a', 'b'", "[a, b]", "['a', 2]", "[" * 10_000],
)
def test_a_text_that_begins_with_a_bracket_stays_a_text(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "a.csv", [["anchor", "positive"], ['["q"]', text]])
    assert read(path) == [{"anchor": '["q"]', "positive": text}]


def test_a_text_of_json_lines_stays_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"anchor": "q", "positive": '["a", "b"]'}))
    assert read(path) == [{"anchor": "q", "positive": '["a", "b"]'}]


def test_a_printed_array_is_a_bad_row(tmp_path: Path) -> None:
    """As pandas writes the arrays that it reads from Parquet: Python would join the two texts."""
    array = str(np.array(["a", "b"], dtype=object))
    path = write(tmp_path / "a.csv", [["anchor", "positive", "negative"], ["q", "p", array]])
    with pytest.raises(
        UserError, match=r"a\.csv:2: column 'negative' holds a printed array, .*JSON"
    ):
        read(path)


def test_evaluation_reads_lists_and_numbered_columns(tmp_path: Path) -> None:
    listed = [["anchor", "positive"], ["q", "['a', 'b']"], ["r", "c"]]
    numbered = [["anchor", "positive_1", "positive_2"], ["q", "a", "b"], ["r", "c", ""]]
    for rows in (listed, numbered):
        found = read_pairs(write(tmp_path / "a.csv", rows))
        assert isinstance(found, Retrieval)
        assert [text for _, text in found.corpus.values()] == ["a", "b", "c"]
        assert [len(grades) for grades in found.relevant.values()] == [2, 1]
