"""Rows that used to be lost or changed without a word: mixed, repeated, in lists."""

import json
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llm2comp.data.drawn.rows import Rows, drawn_once
from llm2comp.data.pairs import write_pairs
from llm2comp.data.sentences import draw_sentences, write_sentences
from llm2comp.errors import UserError
from llm2comp.recipe import Supervised, Unsupervised
from llm2comp.recipe_parts import DataSource
from llm2comp.training.supervised import DistinctTexts

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café crème") for form in ("NFC", "NFD"))


def pairs_file(path: Path, rows: Sequence[Mapping[str, object]], **fields: object) -> DataSource:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return DataSource.model_validate({"source": str(path)} | fields)


def draw(
    folder: Path, source: DataSource, batch_size: int, steps: int = 1, on_bad_row: str = "fail"
) -> Rows:
    """Draw the pairs of a source."""
    stage = Supervised(
        data=[source], steps=steps, batch_size=batch_size, learning_rate=1.0, eval_pairs=0
    )
    write = partial(write_pairs, stage=stage, seed=0, on_bad_row=on_bad_row)
    return drawn_once(folder / "work", stage, 0, on_bad_row, write)


def drawn(folder: Path, source: DataSource, **options: Any) -> list[dict[str, Any]]:
    """Return the pairs of a source, sorted."""
    (dataset,) = draw(folder, source, batch_size=100, **options).train.values()
    return sorted(dataset.to_list(), key=json.dumps)


@pytest.mark.parametrize("given", ["{}.jsonl", "{}.csv"])
@pytest.mark.parametrize("first", [True, False])
def test_pairs_and_triples_are_mixed_and_none_loses_its_negative(
    tmp_path: Path, first: bool, given: str
) -> None:
    rows = [{"anchor": f"q{i}", "positive": f"p{i}", "negative": f"n{i}"} for i in range(6)]
    without = [1] if first else [0, 1]
    path = tmp_path / given.format("mixed")
    if path.suffix == ".csv":
        lines = [",".join(row.values()) for row in rows]
        for i in without:
            lines[i] = f"q{i},p{i},"
        path.write_text("anchor,positive,negative\n" + "\n".join(lines) + "\n")
        source = DataSource(source=str(path))
    else:
        for i in without:
            del rows[i]["negative"]
        source = pairs_file(path, rows)
    found = {row["anchor"]: row["negative"] for row in drawn(tmp_path, source)}
    assert found == {f"q{i}": None if i in without else f"n{i}" for i in range(6)}


@pytest.mark.parametrize("first", [True, False])
def test_pairs_with_and_without_a_score_are_not_mixed(tmp_path: Path, first: bool) -> None:
    """A pair without a score would count as a positive pair."""
    rows: list[dict[str, Any]] = [
        {"anchor": f"q{i}", "positive": f"p{i}", "score": i} for i in range(6)
    ]
    for i in [1] if first else [0, 1]:
        del rows[i]["score"]
    source = pairs_file(tmp_path / "mixed.jsonl", rows)
    with pytest.raises(UserError, match=rf"mixed\.jsonl:{2 if first else 3}: .*'score'") as raised:
        drawn(tmp_path, source)
    assert "\n" not in str(raised.value)
    left = drawn(tmp_path, source, on_bad_row="skip")
    assert len(left) == (5 if first else 2)
    assert all(("score" in row) == first for row in left)


def test_a_pair_with_ten_negatives_is_ten_rows_in_ten_batches(tmp_path: Path) -> None:
    rows = [
        {"anchor": f"q{i}", "positive": f"p{i}", "negative": f"n{i}{j}"}
        for i in range(20)
        for j in range(10)
    ]
    rows_drawn = draw(tmp_path, pairs_file(tmp_path / "a.jsonl", rows * 2), 10, steps=40)
    (dataset,) = rows_drawn.train.values()
    key = ("anchor", "positive", "negative")
    assert sorted(tuple(row[c] for c in key) for row in dataset) == sorted(
        tuple(row[c] for c in key) for row in rows
    )
    batches = list(DistinctTexts(dataset, batch_size=10, drop_last=False))
    assert all(len(set(dataset[batch]["anchor"])) == len(batch) for batch in batches)


def test_lists_of_positives_and_negatives_become_rows(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "pos": ["p1"], "neg": ["n1", "n2", "n3"]},
        {"query": "b", "pos": ["p4", "p5"], "neg": ["n4"]},
        {"query": "c", "pos": "p6", "neg": "n6"},
    ]
    rows += [{"query": f"z{i}", "pos": f"z{i}+", "neg": f"z{i}-"} for i in range(30)]
    columns = {"anchor": "query", "positive": "pos", "negative": "neg"}
    found = drawn(tmp_path, pairs_file(tmp_path / "a.jsonl", rows, columns=columns))
    assert [tuple(row.values())[:3] for row in found[:6]] == [
        ("a", "p1", "n1"),
        ("a", "p1", "n2"),
        ("a", "p1", "n3"),
        ("b", "p4", "n4"),
        ("b", "p5", "n4"),
        ("c", "p6", "n6"),
    ]


@pytest.mark.parametrize(
    ("positive", "reason"),
    [
        ([], "'positive' is an empty list"),
        (["a", 3], "'positive' item 2: holds int, not a string"),
        (["a", " "], "'positive' item 2: is empty"),
        ([["a"]], "'positive' item 1: holds list, not a string"),
    ],
)
def test_a_wrong_list_is_named(tmp_path: Path, positive: object, reason: str) -> None:
    source = pairs_file(tmp_path / "a.jsonl", [{"anchor": "q", "positive": positive}])
    with pytest.raises(UserError, match=rf"a\.jsonl:1: column {reason}"):
        drawn(tmp_path, source)


def test_a_list_of_anchors_or_texts_is_refused(tmp_path: Path) -> None:
    source = pairs_file(tmp_path / "a.jsonl", [{"anchor": ["q"], "positive": "p", "text": ["t"]}])
    with pytest.raises(UserError, match=r"a\.jsonl:1: column 'anchor' holds list, not a string"):
        drawn(tmp_path, source)
    with pytest.raises(UserError, match=r"a\.jsonl:1: column 'text' holds list, not a string"):
        list(draw_sentences([source], 1, 0))


def test_batches_that_cannot_be_filled_are_refused_with_numbers(tmp_path: Path) -> None:
    rows = [{"anchor": f"q{i}", "positive": "the same"} for i in range(64)]
    with pytest.raises(UserError) as raised:
        draw(tmp_path, pairs_file(tmp_path / "a.jsonl", rows), batch_size=16, steps=4)
    message = str(raised.value)
    assert "one text is in 64 of 64 rows" in message
    assert "at most 4 rows fit into 4 batches of 16" in message
    assert "leave out rows with that text" in message
    assert not (tmp_path / "work" / "rows").exists()


def test_rows_that_are_all_alone_in_their_batch_are_refused(tmp_path: Path) -> None:
    rows = [{"anchor": "q", "positive": "p1"}, {"anchor": "q", "positive": "p2"}]
    with pytest.raises(UserError, match="one text is in 2 of 2 rows"):
        draw(tmp_path, pairs_file(tmp_path / "a.jsonl", rows), batch_size=4, steps=12)


def test_a_text_in_a_few_rows_too_many_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"anchor": f"q{i}", "positive": f"p{max(i, 23)}"} for i in range(64)]
    draw(tmp_path, pairs_file(tmp_path / "a.jsonl", rows), batch_size=16, steps=4)
    (message,) = caplog.messages
    assert "one text is in 24 of 64 rows" in message
    assert "at most 44 rows fit into 4 batches of 16" in message
    (dataset,) = draw(tmp_path, DataSource(source=str(tmp_path / "a.jsonl")), 16, 4).train.values()
    batches = list(DistinctTexts(dataset, batch_size=16, drop_last=False))
    assert sum(map(len, batches[:4])) <= 44
    assert len(batches) == 24


@pytest.mark.parametrize("few", ["anchor", "positive"])
def test_few_queries_in_many_rows_leave_batches_small(tmp_path: Path, few: str) -> None:
    """A batch holds each of 20 queries once, and so has 20 rows, though no text is in many rows."""
    other = "positive" if few == "anchor" else "anchor"
    rows = [
        {few: f"q{i}", other: f"p{i}-{j}", "negative": f"n{i}-{j}"}
        for i in range(20)
        for j in range(50)
    ]
    with pytest.raises(UserError, match="at most 320 rows fit into 16 batches of 64") as raised:
        draw(tmp_path, pairs_file(tmp_path / "a.jsonl", rows), batch_size=64, steps=16)
    assert f"1,000 rows have 20 {few}s, and a batch holds each {few} once" in str(raised.value)


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 8), (8, 1)])
def test_a_pair_alone_in_its_batch_has_nothing_to_learn_from(
    tmp_path: Path, rows: int, batch_size: int
) -> None:
    pairs = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(rows)]
    with pytest.raises(UserError, match="every pair is alone"):
        draw(tmp_path, pairs_file(tmp_path / "a.jsonl", pairs), batch_size, steps=8 // batch_size)
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"text {i}\n" for i in range(rows)))
    stage = Unsupervised(
        data=[DataSource(source=str(texts))],
        steps=8 // batch_size,
        batch_size=batch_size,
        learning_rate=1.0,
    )
    write = partial(write_sentences, stage=stage, seed=0, on_bad_row="fail")
    with pytest.raises(UserError, match="every text is alone"):
        drawn_once(tmp_path / "texts", stage, 0, "fail", write)


def test_two_forms_of_unicode_are_one_text(tmp_path: Path) -> None:
    texts = tmp_path / "a.txt"
    texts.write_text("\n".join([COMPOSED, DECOMPOSED, COMPOSED.upper(), "other"]), encoding="utf-8")
    found = list(draw_sentences([DataSource(source=str(texts))], 4, 0))
    assert sorted(unicodedata.normalize("NFC", text) for text in found) == sorted(
        [COMPOSED, COMPOSED.upper(), "other"]  # another case is another text
    )
    rows = [
        {"anchor": "one", "positive": COMPOSED},
        {"anchor": "one", "positive": DECOMPOSED},
        {"anchor": "two", "positive": DECOMPOSED},
        {"anchor": "three", "positive": "another"},
    ]
    dataset = draw(tmp_path, pairs_file(tmp_path / "a.jsonl", rows), 2, steps=2).train
    (kept,) = dataset.values()
    assert len(kept) == 3
    # Both are kept as they are written, and are never each other's negatives.
    batches = list(DistinctTexts(kept, batch_size=2, drop_last=False))
    forms = {unicodedata.normalize("NFC", text) for text in kept["positive"]}
    assert forms == {COMPOSED, "another"}
    assert set(kept["positive"]) <= {COMPOSED, DECOMPOSED, "another"}
    assert sorted(map(len, batches)) == [1, 2]


def test_columns_that_nobody_asked_for_are_in_no_row(tmp_path: Path) -> None:
    row = {"title": "t", "anchor": "q", "positive": "p", "text": "x", "negative_2": "m", "id": 3}
    rows = [row | {"positive": f"p{i}", "anchor": f"q{i}"} for i in range(4)]
    (dataset,) = draw(tmp_path, pairs_file(tmp_path / "a.jsonl", rows), 4).train.values()
    assert dataset.column_names == ["anchor", "positive"]


def test_a_column_that_is_mapped_by_a_wrong_name_is_refused(tmp_path: Path) -> None:
    rows = [{"anchor": "q", "positive": "p", "neg": "n"}]
    source = pairs_file(tmp_path / "a.jsonl", rows, columns={"negatve": "neg"})
    with pytest.raises(UserError, match=r"columns maps 'negatve'.*nearest: 'negative'"):
        drawn(tmp_path, source)


def test_skipped_rows_are_counted_and_most_of_them_loudly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(4)]
    source = pairs_file(tmp_path / "a.jsonl", good + [{"anchor": "q"}] * 3)
    summary = draw(tmp_path, source, 4, on_bad_row="skip").summary
    assert summary == {"pairs": {source.source: 4}, "skipped": {source.source: 3}}
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, f"{source.source}: skipped 3 bad rows of 7")
    ]
    caplog.clear()
    source = pairs_file(tmp_path / "b.jsonl", good + [{"anchor": "q"}] * 5)
    draw(tmp_path, source, 4, on_bad_row="skip")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "MOST ROWS ARE BAD: skipped 5 of 9; the first is row 5: no col" in record.getMessage()
    source = pairs_file(tmp_path / "c.jsonl", [{"anchor": "q"}] * 5)
    with pytest.raises(UserError, match=r"c\.jsonl: all 5 rows are bad; the first is row 1: no"):
        draw(tmp_path, source, 4, on_bad_row="skip")


def test_a_source_with_the_longest_file_name_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / f"{'語' * 83}.jsonl"  # 255 bytes
    rows = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(4)]
    assert len(drawn(tmp_path, pairs_file(path, rows))) == 4


@pytest.mark.parametrize("kind", [Supervised, Unsupervised])
@pytest.mark.parametrize(("rows", "held_out"), [(6, 0), (8, 0), (9, 1), (10, 2)])
def test_a_stage_that_trains_on_all_of_its_rows_says_so(
    tmp_path: Path,
    kind: type[Supervised | Unsupervised],
    rows: int,
    held_out: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = ("anchor", "positive") if kind is Supervised else ("text",)
    content = [{name: f"{name} {i}" for name in names} for i in range(rows)]
    source = pairs_file(tmp_path / "a.jsonl", content)
    said = {}
    for eval_pairs in (0, 4):
        stage = kind(data=[source], steps=2, batch_size=4, learning_rate=1.0, eval_pairs=eval_pairs)
        write = partial(
            write_pairs if kind is Supervised else write_sentences,
            stage=stage,
            seed=0,
            on_bad_row="fail",
        )
        caplog.clear()
        drawn = drawn_once(tmp_path / f"{eval_pairs}", stage, 0, "fail", write)
        said[eval_pairs] = [message for message in caplog.messages if "trained on" in message]
    assert len(drawn.held_out) == held_out
    but = " but one" if held_out else ""
    expected = (
        f"{stage.stage}: all rows{but} are trained on, so there is no held-out loss and no warning "
        "of collapse; lower steps, or use evaluation.during"
    )
    assert said == {0: [], 4: [] if held_out == 2 else [expected]}
