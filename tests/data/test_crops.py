"""UCL's views by cropping: two spans of a text, the same for the same seed."""

import json
import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llm2comp.data.crops import SPAN_WORDS, TEXT_WORDS, Crops
from llm2comp.data.drawn.rows import SETTINGS, Rows, drawn_once
from llm2comp.data.sentences import write_sentences
from llm2comp.errors import UserError
from llm2comp.recipe import Unsupervised
from llm2comp.recipe_parts import DataSource

TEXTS = [" ".join(f"w{text}-{word}" for word in range(16 + 20 * text)) for text in range(12)]


def draw(folder: Path, texts: Sequence[str], seed: int = 0, **settings: Any) -> Rows:
    source = folder / "texts.jsonl"
    folder.mkdir(exist_ok=True)
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    stage = Unsupervised.model_validate(
        {
            "data": [DataSource(source=str(source))],
            "steps": 2,
            "batch_size": 4,
            "learning_rate": 1.0,
            "eval_pairs": 4,
        }
        | settings
    )
    write = partial(write_sentences, stage=stage, seed=seed, on_bad_row="fail")
    return drawn_once(folder / "work", stage, seed, "fail", write)


def views(rows: Rows) -> list[tuple[str, str]]:
    return [
        (row["anchor"], row["positive"])
        for part in (rows.train["texts"], rows.held_out)
        for row in part
    ]


def test_both_views_are_spans_of_whole_words_and_differ() -> None:
    crops = Crops(0)
    shares = []
    for text in TEXTS * 40:
        words = len(text.split())
        first, second = crops.two(text)
        assert first != second
        for view in (first, second):
            assert f" {view} " in f" {text} "
            length = len(view.split())
            assert max(SPAN_WORDS, round(0.1 * words)) <= length <= words / 2
            shares.append((words, length / words, text.split().index(view.split()[0]) / words))
    longest = [(length, begin) for words, length, begin in shares if words == 236]
    lengths, begins = zip(*longest, strict=True)
    assert min(lengths) < 0.15 < 0.45 < max(lengths)
    assert min(begins) < 0.1 < 0.7 < max(begins)


def test_spaces_and_line_breaks_within_a_span_are_kept() -> None:
    text = "".join(f"{word}  \n" for word in range(TEXT_WORDS))
    assert all(view in text and view == view.strip() for view in Crops(1).two(text))


def test_the_same_seed_draws_the_same_spans_and_another_seed_others(tmp_path: Path) -> None:
    found = []
    for seed in (3, 3, 4):
        found.append(views(draw(tmp_path, TEXTS, seed, views="crop")))
        shutil.rmtree(tmp_path / "work")
    assert found[0] == found[1]
    assert len(found[0]) == len(TEXTS)
    assert set(found[0]).isdisjoint(found[2])


def test_the_views_by_dropout_are_the_text_itself(tmp_path: Path) -> None:
    assert sorted(views(draw(tmp_path, TEXTS))) == sorted((text, text) for text in TEXTS)


def test_spans_are_drawn_once_and_again_if_the_views_change(tmp_path: Path) -> None:
    first = views(draw(tmp_path, TEXTS, views="crop"))
    assert views(draw(tmp_path, TEXTS[::-1], views="crop")) == first
    assert all(anchor == positive for anchor, positive in views(draw(tmp_path, TEXTS)))
    # Rows of an older version have no such key, and they are read, not drawn again.
    assert "views" not in json.loads((tmp_path / "work" / "rows" / SETTINGS).read_text())


def test_texts_too_short_to_crop_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = ["seven words are too few for two", "日本語" * 200, "x " * (TEXT_WORDS - 1)]
    with caplog.at_level(logging.WARNING, "llm2comp"):
        rows = draw(tmp_path, TEXTS[:6] + short, views="crop", eval_pairs=0)
    assert rows.summary == {"texts": 6, "too_short": 3}
    assert len(rows.train["texts"]) == 6
    assert any("3 texts have fewer than 16 words, too few to crop" in m for m in caplog.messages)
    with pytest.raises(UserError, match=r"all 3 texts have fewer than 16 words.*views: dropout"):
        draw(tmp_path / "short", short, views="crop")
