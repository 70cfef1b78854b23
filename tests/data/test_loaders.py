"""Passages, sentences and pairs for the three stages."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llm2comp.data.drawn.rows import Rows, drawn_once
from llm2comp.data.pairs import write_pairs
from llm2comp.data.passages import draw_passages
from llm2comp.data.sentences import draw_sentences
from llm2comp.errors import UserError
from llm2comp.recipe import Supervised
from llm2comp.recipe_parts import DataSource, Passages


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_backbone)


def text_source(path: Path, texts: list[str], weight: float = 1.0) -> DataSource:
    path.write_text("\n".join(texts), encoding="utf-8")
    return DataSource(source=str(path), weight=weight)


def pair_source(path: Path, rows: Sequence[Mapping[str, object]], **fields: object) -> DataSource:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return DataSource.model_validate({"source": str(path)} | fields)


def draw_pairs(
    folder: Path,
    data: list[DataSource],
    count: int,
    held_out: int = 0,
    on_bad_row: str = "fail",
    steps: int = 1,
) -> Rows:
    """Draw pairs for one step, or more."""
    size = count // steps
    stage = Supervised(
        data=data, steps=steps, batch_size=size, learning_rate=1.0, eval_pairs=held_out
    )
    draw = partial(write_pairs, stage=stage, seed=0, on_bad_row=on_bad_row)
    return drawn_once(folder / f"work-{count}-{held_out}", stage, 0, on_bad_row, draw)


def test_passages_are_filtered_by_characters_and_tokens(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = ["short", "just right for it", "the very long passage that goes on and on"]
    source = text_source(tmp_path / "a.txt", texts)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest = len(ids[1])

    def load(**limits: int) -> list[str]:
        passages = draw_passages([source], tokenizer, Passages(**limits), 10, seed=0)
        return sorted(map(tokenizer.decode, passages))

    assert load(min_chars=6, max_tokens=longest) == [texts[1]]
    assert load(min_chars=5, max_tokens=longest) == [texts[1], texts[0]]
    cut = load(min_chars=6, max_tokens=longest, crop=True)
    assert cut == [texts[1], tokenizer.decode(ids[2][:longest])]
    with pytest.raises(UserError, match=r"a\.txt: no passage has at least 1,000 characters"):
        load()
    with pytest.raises(UserError, match="no passage has"):  # one token cannot be cut in two
        load(min_chars=1, max_tokens=1, crop=True)


def test_passages_depend_on_the_seed_and_do_not_repeat(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    first = text_source(tmp_path / "a.txt", [f"first {i}" for i in range(600)] * 2, weight=3)
    second = text_source(tmp_path / "b.txt", [f"second {i}" for i in range(200)] + ["first 1"])

    def load(seed: int, count: int = 400) -> list[str]:
        limits = Passages(min_chars=1)
        passages = draw_passages([first, second], tokenizer, limits, count, seed)
        return list(map(tokenizer.decode, passages))

    drawn = load(0)
    assert drawn == load(0)
    assert drawn != load(1)
    assert len(set(drawn)) == len(drawn) == 400
    assert sum(text.startswith("second") for text in drawn) == pytest.approx(100, abs=1)
    assert len(load(0, count=5000)) == 800


def test_sentences_are_distinct_and_a_shortage_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = text_source(tmp_path / "a.txt", ["a", "b ", "b", "c"])
    assert sorted(draw_sentences([source], 3, seed=0)) == ["a", "b", "c"]
    assert not caplog.messages
    list(draw_sentences([source], 4, seed=0))
    assert "3 texts, 4 were asked for" in caplog.text
    with pytest.raises(UserError, match="there are no texts"):
        list(draw_sentences([text_source(tmp_path / "b.txt", [])], 4, seed=0))


def test_pairs_are_one_dataset_per_source_in_proportion_to_the_weights(tmp_path: Path) -> None:
    plain = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(100)]
    triples = [row | {"negative": f"n{i}"} for i, row in enumerate(plain)]
    pairs = draw_pairs(
        tmp_path,
        [
            pair_source(tmp_path / "plain.jsonl", plain, weight=2, query_instruction="Find it"),
            pair_source(tmp_path / "triples.jsonl", triples),
        ],
        count=90,
    ).train
    first, second = pairs.values()
    assert list(pairs) == [str(tmp_path / "plain.jsonl"), str(tmp_path / "triples.jsonl")]
    assert (len(first), len(second)) == (60, 30)
    assert (first.column_names, second.column_names) == (
        ["anchor", "positive"],
        ["anchor", "positive", "negative"],
    )
    query = first[0]["positive"].replace("p", "q")
    assert first[0]["anchor"] == f"Find it:{query}\n"
    assert second[0]["anchor"].startswith("q")


def test_held_out_rows_are_not_trained_on_and_do_not_change_the_others(tmp_path: Path) -> None:
    plain = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(40)]
    scored = [{"anchor": f"a{i}", "positive": f"b{i}", "score": i} for i in range(40)]
    files = [
        pair_source(tmp_path / "plain.jsonl", plain, query_instruction="Find it"),
        pair_source(tmp_path / "scored.jsonl", scored),
    ]
    alone = draw_pairs(tmp_path, files, count=50)
    beside = draw_pairs(tmp_path, files, count=50, held_out=10)
    assert len(alone.held_out) == 0
    assert {name: part.to_list() for name, part in beside.train.items()} == {
        name: part.to_list() for name, part in alone.train.items()
    }
    trained = {row["positive"] for part in alone.train.values() for row in part}
    assert len(beside.held_out) == 5  # only those without a score
    assert trained.isdisjoint(beside.held_out["positive"])
    for row in beside.held_out:
        assert row["anchor"] == f"Find it:{row['positive'].replace('p', 'q')}\n"


def test_no_held_out_pair_is_trained_on_where_rows_have_many_negatives(tmp_path: Path) -> None:
    rows = [
        {"anchor": f"q{i}", "positive": f"p{i}", "negative": [f"n{i}-{j}" for j in range(8)]}
        for i in range(60)
    ]
    source = pair_source(tmp_path / "a.jsonl", rows)
    drawn = draw_pairs(tmp_path, [source], count=60, held_out=8)
    (trained,) = drawn.train.values()
    assert len(trained) == 60
    assert len(set(drawn.held_out["anchor"])) == len(drawn.held_out) == 8
    assert set(trained["anchor"]).isdisjoint(drawn.held_out["anchor"])
    # All 60 pairs are trained on, so that none is left to hold out.
    drawn = draw_pairs(tmp_path, [source], count=470, held_out=8, steps=47)
    assert len(drawn.held_out) == 0


def test_a_source_that_is_used_twice_gives_two_datasets(tmp_path: Path) -> None:
    rows = [{"anchor": f"q{i}", "positive": f"p{i}"} for i in range(10)]
    source = pair_source(tmp_path / "a.jsonl", rows)
    swapped = source.model_copy(update={"columns": {"anchor": "positive", "positive": "anchor"}})
    pairs = draw_pairs(tmp_path, [source, swapped], count=8).train
    assert list(pairs) == [source.source, f"{source.source}#2"]
    assert pairs[f"{source.source}#2"][0]["anchor"].startswith("p")


def test_a_mapped_column_that_some_rows_lack_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{"anchor": "q", "positive": "p", "neg": "n"}, {"anchor": "r", "positive": "s"}]
    source = pair_source(tmp_path / "a.jsonl", rows, columns={"negative": "neg"})
    with pytest.raises(UserError, match=r"a\.jsonl:2: no column 'neg'"):
        draw_pairs(tmp_path, [source], count=2)


def test_scores_become_numbers_and_the_first_may_be_zero(tmp_path: Path) -> None:
    rows = [
        {"anchor": f"q{i}", "positive": f"p{i}", "score": str(i / 2) if i % 2 else i / 2}
        for i in range(10)
    ]
    pairs = draw_pairs(tmp_path, [pair_source(tmp_path / "a.jsonl", rows)], count=10).train
    (dataset,) = pairs.values()
    assert dataset.column_names == ["anchor", "positive", "score"]
    assert {row["anchor"]: row["score"] for row in dataset} == {f"q{i}": i / 2 for i in range(10)}


@pytest.mark.parametrize("score", ["high", "nan", True, None, ""])
def test_a_score_that_is_not_a_number_is_a_bad_row(tmp_path: Path, score: object) -> None:
    rows = [{"anchor": "q", "positive": "p", "score": s} for s in (0.0, score)]
    with pytest.raises(UserError, match=r"a\.jsonl:2: column 'score' holds .*, not a number"):
        draw_pairs(tmp_path, [pair_source(tmp_path / "a.jsonl", rows)], count=2)


def test_negatives_and_scores_in_one_source_are_refused(tmp_path: Path) -> None:
    rows = [{"anchor": "q", "positive": "p", "negative": "n", "score": 1.0}]
    with pytest.raises(UserError, match=r"a\.jsonl: has both negatives and scores"):
        draw_pairs(tmp_path, [pair_source(tmp_path / "a.jsonl", rows)], count=1)
