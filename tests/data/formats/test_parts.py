"""Sources of several files, compressed files, JSON arrays, and folders of `save_to_disk`."""

import gzip
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm2comp.data import mixture, sample, sources
from llm2comp.data.drawn import origins
from llm2comp.data.text_files import read_texts
from llm2comp.errors import UserError
from llm2comp.recipe_parts import DataSource

TEXTS = ["one", "two \u2028 still two", "日本語 🦉", "x" * 200_000]


def read(source: Path | str, on_bad_row: str = "fail", **fields: object) -> list[str]:
    one = DataSource.model_validate({"source": str(source)} | fields)
    return [row["text"] for row in sources.rows(one, ["text"], on_bad_row)]


def lines(texts: Sequence[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": partial(pa.compress, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind", [".jsonl", ".txt", ".csv", ".json"])
def test_a_compressed_file_gives_the_rows_of_the_plain_one(
    tmp_path: Path, kind: str, ending: str
) -> None:
    table = {
        ".jsonl": lines(TEXTS),
        ".txt": "\n".join(TEXTS).encode(),
        ".csv": "\n".join(["text", *TEXTS]).encode(),
        ".json": json.dumps([{"text": text} for text in TEXTS]).encode(),
    }
    half = len(table[kind]) // 2
    path = tmp_path / f"a{kind}{ending}"
    # Two members, as `cat a.gz b.gz` and parallel compressors write them.
    path.write_bytes(b"".join(map(COMPRESS[ending], (table[kind][:half], table[kind][half:]))))
    assert read(path) == TEXTS
    assert list(read_texts(path)) == TEXTS


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("damage", ["cut", "plain"])
def test_a_damaged_compressed_file_is_one_line(tmp_path: Path, ending: str, damage: str) -> None:
    content = COMPRESS[ending](lines([str(i) * 50 for i in range(2000)]))
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else lines(["a"] * 100))
    for on_bad_row in ("fail", "skip"):
        with pytest.raises(UserError, match=rf"a\.jsonl\{ending}: cannot be read: ") as raised:
            read(path, on_bad_row)
        assert "\n" not in str(raised.value)


def test_a_bad_row_of_a_compressed_file_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(["a", "b"]) + b"{"))
    with pytest.raises(UserError, match=r"a\.jsonl\.gz:3: broken JSON"):
        read(path)


JSON = {
    "[]": [],
    '[{"text": "a"}]': ["a"],
    '\ufeff [\n {"text": "a"},\n {\n "text": "b"\n }\n]\n': ["a", "b"],
    '{"text": "a"}\n{"text": "b"}\n': ["a", "b"],
}


@pytest.mark.parametrize("content", JSON)
def test_json_is_an_array_or_one_object_a_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    assert read(tmp_path / "a.json") == JSON[content]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"},\n\n {"text": 3}]', r":3: column 'text' holds int"),
        ('[{"text": "a"},\n "b"]', r":2: a JSON object was expected"),
        ('[{"text": "a"}\n {"text": "b"}]', r":2: broken JSON \(a comma or \] is missing"),
        ('[{"text": "a"},\n {"text": ]', r":2: broken JSON"),
        ('[{"text": "a"},\n {"text": "b"', r":2: broken JSON"),
        ('[{"text": "a"},\n {"text": "b", "text": "c"}]', r":2: broken JSON \(the key 'text'"),
        ('[{"text": "a"}]\n[{"text": "b"}]', r":2: there is more after the end"),
        ('[{"text": "a"},', r":1: broken JSON"),
    ],
)
def test_a_mistake_in_a_json_array_is_named_with_its_line(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.json" + message) as raised:
        read(tmp_path / "a.json")
    assert "\n" not in str(raised.value)


def test_a_folder_of_parts_is_read_in_order(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"part-{i}.jsonl.gz").write_bytes(gzip.compress(lines([f"{i}a", f"{i}b"])))
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".part-0.jsonl.gz.crc").touch()
    (tmp_path / "README.md").write_text("about them")
    expected = ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert read(tmp_path) == expected
    assert read(f"{tmp_path}/*.jsonl.gz") == read(f"{tmp_path}/**/part-?.*") == expected
    (tmp_path / "part-1.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n{"text": 3}\n'))
    with pytest.raises(UserError, match=r"part-1\.jsonl\.gz:2: column 'text' holds int"):
        read(tmp_path)
    assert read(tmp_path, "skip") == ["0a", "0b", "a", "2a", "2b"]


def test_the_files_of_a_source_are_drawn_in_the_order_of_the_seed(tmp_path: Path) -> None:
    """With more rows than the window of the shuffle, the first file would give all of them."""
    for i in range(12):
        (tmp_path / f"part-{i:02}.jsonl").write_bytes(lines([f"{i:02}"]))
    source = DataSource(source=str(tmp_path))
    names = {f"{i:02}" for i in range(12)}

    def first(seed: int) -> tuple[str, ...]:
        rows = sources.rows(source, ["text"], "fail", seed=str(seed))
        return tuple(row["text"] for row in rows)

    assert all(set(first(seed)) == names for seed in range(5))
    assert len({first(seed) for seed in range(5)}) == 5
    assert first(3) == first(3)
    drawn = [row["text"] for row in mixture.shuffled_sources([source], ["text"], 0, "fail")[0]]
    assert set(drawn) == names


def test_parquet_parts_are_those_of_the_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a clone of a dataset of the hub has them."""
    caplog.set_level(logging.INFO, "llm2comp")
    (tmp_path / "data").mkdir()
    for split, count in {"train": 2, "test": 1}.items():
        for i in range(count):
            name = f"{split}-{i:05}-of-{count:05}.parquet"
            pq.write_table(pa.table({"text": [f"{split} {i}"]}), tmp_path / "data" / name)
    (tmp_path / "README.md").write_text("about them")
    assert read(tmp_path) == ["train 0", "train 1"]
    assert read(tmp_path, split="test") == ["test 0"]
    assert caplog.messages == [
        f"{tmp_path}: reads the 2 files of split train of 3",
        f"{tmp_path}: reads the 1 file of split test of 3",
    ]
    with pytest.raises(UserError, match="has no files of split 'dev', only of train, test"):
        read(tmp_path, split="dev")
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="has 1 of the 2 parts of train; download the others too"):
        read(tmp_path)


def test_files_of_one_split_among_others_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llm2comp")
    folder = tmp_path / "of [mine]"
    folder.mkdir()
    for name in ("mined", "train"):
        (folder / f"{name}.jsonl").write_bytes(lines([name]))
    assert read(folder) == ["train"]
    assert caplog.messages == [f"{folder}: reads the 1 file of split train of 2"]


@pytest.mark.parametrize("name", ["train", "test"])
def test_texts_that_are_analysed_are_all_of_a_folder(tmp_path: Path, name: str) -> None:
    for one in ("mined", name):
        (tmp_path / f"{one}.jsonl").write_bytes(lines([one]))
    assert set(sample.draw(str(tmp_path), 10, seed=0).texts) == {"mined", name}


def test_a_folder_that_cannot_be_meant_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no file that can be read"):
        read(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(lines(["a"]))
    (tmp_path / "notes.txt").write_text("not a row\n")
    with pytest.raises(UserError, match=r"several kinds \(1 \.jsonl, 1 \.txt\).*/\*\.jsonl"):
        read(tmp_path)
    assert read(f"{tmp_path}/*.jsonl") == ["a"]
    with pytest.raises(UserError, match=r"\*\.parquet: has no file that can be read"):
        read(f"{tmp_path}/*.parquet")


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"text": ["a", "b", None], "beside": [[1], [2], [3]]})
    table.save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one", "skip") == ["a", "b"]
    with pytest.raises(UserError, match="one:3: column 'text' holds NoneType"):
        read(tmp_path / "one")
    both = datasets.DatasetDict({"train": table.select([0]), "test": table.select([1])})
    both.save_to_disk(tmp_path / "two")
    assert read(tmp_path / "two") == ["a"]
    assert read(tmp_path / "two", split="test") == ["b"]
    with pytest.raises(UserError, match="two: has no split 'dev'; there are train, test"):
        read(tmp_path / "two", split="dev")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(UserError, match="one: cannot be read as a saved dataset: ") as raised:
        read(tmp_path / "one")
    assert "\n" not in str(raised.value)


def test_a_revision_is_for_the_hub(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["a"]))
    for name in (tmp_path / "a.jsonl", tmp_path, "boolq-passages"):
        with pytest.raises(UserError, match="is not on the hub; revision is for datasets"):
            read(name, revision="main")


def test_a_change_of_one_part_is_told(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"part-{i}.jsonl").write_bytes(lines([f"{i}"]))
    source = [DataSource(source=str(tmp_path))]
    before = origins.record(source, {})
    assert before[str(tmp_path)]["files"] == 3
    assert origins.changed(before, origins.record(source, before)) == []
    (tmp_path / "part-1.jsonl").write_bytes(lines(["2"]))  # as many bytes
    assert origins.changed(before, origins.record(source, before)) == [str(tmp_path)]
    (tmp_path / "part-1.jsonl").write_bytes(lines(["1"]))
    assert origins.changed(before, origins.record(source, before)) == []
    (tmp_path / "part-3.jsonl").write_bytes(b"")
    assert origins.changed(before, origins.record(source, before)) == [str(tmp_path)]


@pytest.mark.parametrize("pattern", ["", "/*.jsonl"])
def test_parts_that_are_gone_are_told_and_not_asked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """A run that has drawn its rows goes on without them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "mined").mkdir(parents=True)
    (tmp_path / "data" / "mined" / "a.jsonl").write_bytes(lines(["a"]))
    source = [DataSource(source=f"data/mined{pattern}")]  # the folder is named like a hub id
    before = origins.record(source, {})
    shutil.rmtree(tmp_path / "data")
    assert origins.changed(before, origins.record(source, before)) == [f"data/mined{pattern}"]


@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
def test_another_encoding_is_refused_behind_compression_and_in_an_array(
    tmp_path: Path, on_bad_row: str
) -> None:
    array = json.dumps([{"text": "one"}, {"text": "two"}])
    (tmp_path / "a.json").write_text(array, encoding="utf-16")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines(["one"]).decode().encode("utf-16")))
    for name in ("a.json", "a.jsonl.gz"):
        with pytest.raises(UserError, match=rf"{name}: is in UTF-16; save it as UTF-8"):
            read(tmp_path / name, on_bad_row)
    (tmp_path / "b.json").write_bytes(array.encode().replace(b"two", b"t\0o"))
    with pytest.raises(UserError, match=r"b\.json:1: holds a NUL byte"):
        read(tmp_path / "b.json", on_bad_row)


def test_a_split_of_what_has_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["a"]))
    for name in (tmp_path / "a.jsonl", f"{tmp_path}/*.jsonl", "boolq-passages", Path("-")):
        with pytest.raises(UserError, match="has no splits; split 'dev' is for .* leave split out"):
            read(name, split="dev")
    assert read(tmp_path / "a.jsonl", split="train") == ["a"]
    table = datasets.Dataset.from_dict({"text": ["a"]}, split=datasets.Split.VALIDATION)
    table.save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == read(tmp_path / "one", split="validation") == ["a"]
    with pytest.raises(UserError, match="one: holds one split alone, and not 'dev'; leave split"):
        read(tmp_path / "one", split="dev")
