"""Rows of training data: drawn right, or one line that names the file."""

import math
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import case, cases, refused_or, run, unchanged
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import FORMATS, damaged, reencoded, scalars, table_bytes, texts, values
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llm2comp.data.drawn.distinct import number
from llm2comp.data.drawn.pair_file import POSITIVES, texts_of
from llm2comp.data.drawn.rows import drawn_once
from llm2comp.data.pairs import write_pairs
from llm2comp.data.passages import draw_passages
from llm2comp.data.sentences import write_sentences
from llm2comp.recipe import Supervised, Unsupervised
from llm2comp.recipe_parts import DataSource, Passages

WORDS = "the river rises in the mountains and reaches the sea".split()  # noqa: SIM905
GOOD_TEXTS = st.lists(st.sampled_from(WORDS), min_size=4, max_size=12).map(" ".join)
SIZES = {"steps": 2, "batch_size": 2, "eval_pairs": 1, "learning_rate": 0.01}
COLUMNS = {
    "text": ["text"],
    "pairs": ["anchor", "positive", "negative", "score"],
    "mined": ["query", "pos", "neg", "prompt"],
}


@st.composite
def rows(draw: st.DrawFn, columns: list[str]) -> list[Any]:
    """Good rows, and some with other values, without some columns, with more, or no rows at all."""
    chosen = columns[:2] + draw(st.lists(st.sampled_from(columns[2:] or columns), max_size=1))
    table: list[Any] = []
    for _ in range(draw(st.integers(0, 8))):
        row = {
            name: draw(st.floats(0, 5)) if name == "score" else draw(GOOD_TEXTS) for name in chosen
        }
        table.append(row)
    for _ in range(draw(st.integers(0, 3)) if table else 0):
        place = draw(st.integers(0, len(table) - 1))
        name = draw(st.sampled_from([*columns, "text", "label"]))
        odd = st.one_of(texts, texts, values, st.lists(st.one_of(GOOD_TEXTS, texts), max_size=3))
        if not isinstance(table[place], dict) or draw(st.integers(0, 9)) == 0:
            table[place] = draw(values)
        elif draw(st.integers(0, 4)) == 0:
            table[place].pop(name, None)
        else:
            table[place] = {**table[place], name: draw(odd)}
    return table


@st.composite
def files(draw: st.DrawFn, columns: list[str]) -> tuple[str, bytes]:
    """The ending of a file and what it holds, sometimes damaged."""
    table = draw(rows(columns))
    suffix = draw(st.sampled_from(FORMATS))
    content = table_bytes(table, suffix, draw(st.sampled_from(["\n", "\n", "\r\n", "\r"])))
    assume(content is not None)
    assert content is not None
    kind = draw(st.sampled_from(["good", "good", "damaged", "encoding"]))
    if kind == "damaged":
        content = draw(damaged(content))
    elif kind == "encoding" and suffix != ".parquet":
        content = reencoded(content, draw(st.sampled_from(["utf-8-sig", "utf-16", "cp1252"])))
    return suffix, content


column_maps = st.one_of(
    st.just({}),
    st.just({}),
    st.dictionaries(
        st.sampled_from(["text", "anchor", "positive", "negative", "score", "label"]),
        st.one_of(
            st.sampled_from(["text", "anchor", "positive", "label"]), texts.filter(str.strip)
        ),
        max_size=2,
    ),
)
policies = st.sampled_from(["fail", "skip"])


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the tiny backbone."""
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_backbone)
    return loaded


@cases(160)
@given(file=files(COLUMNS["text"]), columns=column_maps, on_bad_row=policies)
def test_passages(
    tokenizer: PreTrainedTokenizerBase,
    file: tuple[str, bytes],
    columns: dict[str, str],
    on_bad_row: str,
) -> None:
    with case("rows: passages") as folder:
        source = _source(file, columns)
        with unchanged(folder):
            limits = Passages(min_chars=1, max_tokens=50)
            drawn = refused_or(
                lambda: list(draw_passages([source], tokenizer, limits, 6, 0, on_bad_row))
            )
        for ids in drawn or []:
            assert 2 <= len(ids) <= 50
            assert all(isinstance(i, int) and 0 <= i < len(tokenizer) for i in ids)


@cases(160)
@given(file=files(COLUMNS["text"]), columns=column_maps, on_bad_row=policies)
def test_sentences(file: tuple[str, bytes], columns: dict[str, str], on_bad_row: str) -> None:
    with case("rows: sentences") as folder:
        stage = Unsupervised(data=[_source(file, columns)], **SIZES)
        draw = partial(write_sentences, stage=stage, seed=0, on_bad_row=on_bad_row)
        with unchanged(folder, except_for="work"):
            drawn = refused_or(lambda: drawn_once(folder / "work", stage, 0, on_bad_row, draw))
        if drawn:
            found = [row["anchor"] for row in drawn.train["texts"]]
            assert 2 <= len(found) <= 4
            _require_texts(found)
            assert len({unicodedata.normalize("NFC", text) for text in found}) == len(found)


@cases(200)
@given(
    file=st.one_of(files(COLUMNS["pairs"]), files(COLUMNS["mined"])),
    columns=column_maps,
    on_bad_row=policies,
    negatives=st.integers(1, 3),
)
def test_pairs(
    file: tuple[str, bytes], columns: dict[str, str], on_bad_row: str, negatives: int
) -> None:
    with case("rows: pairs") as folder:
        source = _source(file, columns).model_copy(update={"negatives": negatives})
        stage = Supervised(data=[source], **SIZES)
        draw = partial(write_pairs, stage=stage, seed=0, on_bad_row=on_bad_row)
        with unchanged(folder, except_for="work"):
            drawn = refused_or(lambda: drawn_once(folder / "work", stage, 0, on_bad_row, draw))
        for dataset in drawn.train.values() if drawn else []:
            assert 1 <= len(dataset) <= 4
            for row in dataset:
                score = row.pop("score", 0.0)
                assert math.isfinite(score)
                known = row.pop(POSITIVES, [])
                negatives = texts_of(row.pop("negative", None))
                _require_texts([*row.values(), *negatives])
                assert not {number(text) for text in negatives} & {*known, number(row["positive"])}


def _source(file: tuple[str, bytes], columns: dict[str, str]) -> DataSource:
    suffix, content = file
    Path(f"rows{suffix}").write_bytes(content)
    return DataSource(source=f"rows{suffix}", columns=columns)


def _require_texts(found: list[str]) -> None:
    for text in found:
        assert text.strip()
        text.encode()


@cases(8)
@given(
    passages=files(COLUMNS["text"]),
    sentences=files(COLUMNS["text"]),
    pairs=files(COLUMNS["pairs"]),
    on_bad_row=policies,
    changed_stage=st.integers(0, 2),
    column=st.one_of(st.none(), scalars),
)
def test_rows_are_trained_on(
    short_recipe: str,
    passages: tuple[str, bytes],
    sentences: tuple[str, bytes],
    pairs: tuple[str, bytes],
    on_bad_row: str,
    changed_stage: int,
    column: Any,
) -> None:
    recipe = yaml.safe_load(short_recipe)
    with case("rows: train"):
        suffix, content = (passages, sentences, pairs)[changed_stage]
        Path(f"rows{suffix}").write_bytes(content)
        stage = recipe["stages"][changed_stage]
        stage["data"] = [{"source": f"rows{suffix}"}]
        if column is not None:
            stage["data"][0]["columns"] = {"text": column}
        # The stage before is needed, and one stage is enough to see the rows.
        recipe["stages"] = [stage] if changed_stage == 0 else [recipe["stages"][0], stage]
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        run(
            ["train", "recipe.yaml", "--out", "run", "--on-bad-row", on_bad_row],
            writes=["run"],
            begins="run",
        )
