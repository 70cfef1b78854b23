"""Pairs as other tools write them, recognised by their columns."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm2comp.data.drawn.rows import Rows, drawn_once
from llm2comp.data.pairs import write_pairs
from llm2comp.errors import UserError
from llm2comp.recipe import Supervised
from llm2comp.recipe_parts import DataSource

FLAG_EMBEDDING = [
    {
        "query": "how do wolves hunt",
        "pos": ["Wolves hunt in groups.", "A pack hunts together."],
        "neg": ["Owls hunt alone.", "Cats stalk.", "Bees dance."],
        "pos_scores": [0.9, 0.8],
        "neg_scores": [0.2, 0.1, 0.0],
        "prompt": "Find the answer: ",
        "type": "normal",
    },
    {
        "query": "what is salt",
        "pos": ["Salt is a mineral."],
        "neg": ["Sugar is sweet."],
        "prompt": "Find the answer: ",
        "type": "normal",
    },
]
"""As `scripts/hn_mine.py` of FlagEmbedding writes them, after `add_reranker_score.py`."""
TEVATRON = [
    {
        "query_id": "1",
        "query": "how do wolves hunt",
        "positive_passages": [{"docid": "7", "title": "Wolf", "text": "Wolves hunt in groups."}],
        "negative_passages": [
            {"docid": "8", "title": "Owl", "text": "Owls hunt alone."},
            {"docid": "9", "title": "", "text": "Cats stalk."},
        ],
    }
]
"""As `Tevatron/msmarco-passage-aug` has them."""
N_TUPLES = [
    {
        "question": "how do wolves hunt",
        "answer": "Wolves hunt in groups.",
        "negative_1": "Owls hunt alone.",
        "negative_2": "Cats stalk.",
    }
]
"""As `mine_hard_negatives(..., output_format="n-tuple")` of sentence-transformers returns them."""


def write(path: Path, rows: Sequence[Mapping[str, object]], **fields: object) -> DataSource:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return DataSource.model_validate({"source": str(path)} | fields)


def draw(source: DataSource, on_bad_row: str = "fail") -> Rows:
    stage = Supervised(data=[source], steps=1, batch_size=100, learning_rate=1.0, eval_pairs=0)
    write_rows = partial(write_pairs, stage=stage, seed=0, on_bad_row=on_bad_row)
    work = Path(source.source).parent / f"work-{source.negatives}"
    return drawn_once(work, stage, 0, on_bad_row, write_rows)


def rows_of(source: DataSource, on_bad_row: str = "fail") -> list[tuple[Any, ...]]:
    (dataset,) = draw(source, on_bad_row).train.values()
    rows = ((row["anchor"], row["positive"], row.get("negative")) for row in dataset)
    return sorted(rows, key=json.dumps)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_flag_embedding(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llm2comp")
    source = write(tmp_path / f"mined{suffix}", FLAG_EMBEDDING, negatives=2)
    wolves, salt = (f"Find the answer: {row['query']}" for row in FLAG_EMBEDDING)
    assert rows_of(source) == [
        (wolves, "A pack hunts together.", ["Bees dance."]),
        (wolves, "Wolves hunt in groups.", ["Owls hunt alone.", "Cats stalk."]),
        (salt, "Salt is a mineral.", ["Sugar is sweet."]),
    ]
    said = "rows of FlagEmbedding: query as anchor, pos as positive, neg as negative, with prompt"
    assert [message for message in caplog.messages if said in message] != []


def test_two_prompts_before_a_query_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", FLAG_EMBEDDING, query_instruction="Find it")
    with pytest.raises(UserError, match=r"a\.jsonl:1: has a 'prompt' before the query, and"):
        rows_of(source)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_tevatron(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / f"train{suffix}", TEVATRON, negatives=7)
    assert rows_of(source) == [
        (
            "how do wolves hunt",
            "Wolf Wolves hunt in groups.",
            ["Owl Owls hunt alone.", "Cats stalk."],
        )
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_n_tuples(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mined{suffix}"
    if suffix == ".csv":
        lines = [",".join(N_TUPLES[0]), ",".join(N_TUPLES[0].values())]
        path.write_text("\n".join([*lines, "what is salt,A mineral.,Sugar is sweet.,"]))
        source = DataSource(source=str(path), negatives=2)
    else:
        odd = {"question": "what is salt", "answer": "A mineral.", "negative_1": "Sugar is sweet."}
        source = write(path, [*N_TUPLES, odd], negatives=2)
    assert rows_of(source) == [
        ("how do wolves hunt", "Wolves hunt in groups.", ["Owls hunt alone.", "Cats stalk."]),
        ("what is salt", "A mineral.", ["Sugar is sweet."]),
    ]


def test_numbered_columns_of_ones_own(tmp_path: Path) -> None:
    row = {"q": "a", "good_1": "p1", "good_2": "p2", "bad_1": "n1", "bad_10": "n10", "bad_2": "n2"}
    columns = {"anchor": "q", "positive": "good", "negative": "bad"}
    more = {"q": "b", "good_1": "p3", "bad_1": "n3"}
    source = write(tmp_path / "a.jsonl", [row, more], columns=columns, negatives=3)
    negatives = ["n1", "n2", "n10"]
    found = [("a", "p1", negatives), ("a", "p2", negatives), ("b", "p3", ["n3"])]
    assert rows_of(source) == found


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"pos": "p", "neg": ["n"]}, "no column 'query'; there are pos, neg"),
        ({"query": "q", "neg": ["n"]}, "no column 'pos'"),
        ({"query": "q", "pos": []}, "column 'pos' is an empty list"),
        ({"query": "q", "pos": [" "]}, "column 'pos' item 1: is empty"),
        ({"query": "q", "pos": ["p"], "neg": ["n", 3]}, "column 'neg' item 2: holds int, not a st"),
        ({"query": ["q"], "pos": ["p"]}, "column 'query' holds list, not a string"),
    ],
)
def test_a_bad_row_is_named_with_the_tools_own_columns(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    good = {"query": "good", "pos": ["p0"], "neg": ["n0"]}
    source = write(tmp_path / "a.jsonl", [good, row, {"query": "more", "pos": ["p1"]}])
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {reason}") as raised:
        rows_of(source)
    assert "\n" not in str(raised.value)
    assert rows_of(source, "skip") == [("good", "p0", "n0"), ("more", "p1", None)]


def test_a_tevatron_passage_without_a_text_is_named(tmp_path: Path) -> None:
    row = {"query": "q", "positive_passages": [{"docid": "1", "title": "only a title"}]}
    source = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(
        UserError, match=r"a\.jsonl:1: column 'positive_passages' item 1: holds dict, not a string"
    ):
        rows_of(source)


def test_a_bad_first_row_decides_nothing(tmp_path: Path) -> None:
    """Neither which tool's rows these are, nor whether rows have a prompt."""
    rows = [{"id": 1}, {"query": "a", "pos": ["p"]}, {"query": "b", "pos": ["q"], "prompt": "P "}]
    source = write(tmp_path / "a.jsonl", rows)
    assert rows_of(source, "skip") == [("P b", "q", None), ("a", "p", None)]


def test_a_blank_query_is_bad_also_with_a_prompt(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"query": " ", "pos": ["p"], "prompt": "find: "}])
    with pytest.raises(UserError, match=r"a\.jsonl:1: column 'query' is empty"):
        rows_of(source)


def test_columns_of_ones_own_come_before_those_of_a_tool(tmp_path: Path) -> None:
    row = {"anchor": "a", "positive": "p", "query": "q", "pos": ["x"], "neg": ["y"]}
    assert rows_of(write(tmp_path / "a.jsonl", [row, {**row, "anchor": "b", "positive": "r"}])) == [
        ("a", "p", None),
        ("b", "r", None),
    ]


@pytest.mark.parametrize(
    ("row", "columns", "advised"),
    [
        ({"anchor": "q", "positive": "p", "negatives": ["n"]}, {}, "{negative: negatives}"),
        ({"anchor": "q", "positive": "p", "hard_negatives": "n"}, {}, "{negative: hard_negatives}"),
        ({"anchor": "q", "positive": "p", "neg_1": "n"}, {}, "{negative: neg}"),
        (
            {"question": "q", "positive": "p", "negs": ["n"]},
            {"anchor": "question"},
            "{anchor: question, negative: negs}",
        ),
        (
            {"query": "q", "positive_passages": [{"text": "p"}], "negatives": ["n"]},
            {},
            "{anchor: query, positive: positive_passages, negative: negatives}",
        ),
        ({"anchor": "q", "positive": "p", "negative": "n", "negatives": ["m"]}, {}, None),
        ({"anchor": "q", "positive": "p", "negative_1": "n", "negatives": ["m"]}, {}, None),
        ({"query": "q", "pos": ["p"], "neg": ["n"], "negatives": ["m"]}, {}, None),
        ({"anchor": "q", "positive": "p", "negatives": ["n"]}, {"negative": "negatives"}, None),
        ({"anchor": "q", "positive": "p", "other": ["n"]}, {}, None),
    ],
)
def test_negatives_in_a_column_that_is_not_read_are_told_once(
    tmp_path: Path,
    row: dict[str, Any],
    columns: dict[str, str],
    advised: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = re.sub(r'"([qpnm])"', r'"other \1"', json.dumps(row))
    rows = [row, json.loads(other)]
    source = write(tmp_path / "a.jsonl", rows, columns=columns)
    found = rows_of(source)
    told = [message for message in caplog.messages if "`columns:" in message]
    assert len(told) == (advised is not None)
    if advised is None:
        return
    assert told[0].endswith(f"`columns: {advised}` reads those that it has")
    assert all(negative is None for _, _, negative in found)
    given = dict(part.split(": ") for part in advised.strip("{}").split(", "))
    (tmp_path / "again").mkdir()
    caplog.clear()
    again = rows_of(write(tmp_path / "again" / "a.jsonl", rows, columns=given))
    assert [negative for _, _, negative in again] == ["other n", "n"]
    assert not [message for message in caplog.messages if "`columns:" in message]
