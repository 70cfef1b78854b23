"""Rows of sources: each mistake is reported with its line, or skipped and counted."""

import logging
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm2comp.data import hub, sources
from llm2comp.data.drawn import origins
from llm2comp.errors import UserError
from llm2comp.recipe_parts import DataSource


def read(path: Path | str, on_bad_row: str = "fail", **fields: object) -> list[dict[str, str]]:
    source = DataSource.model_validate({"source": str(path)} | fields)
    return list(sources.rows(source, ["text"], on_bad_row))


HUB_DATASET = SimpleNamespace(sha="c0ffee")

BAD_FILES = {
    "blank.txt": (b"one\n\nthree\n", 2, "empty"),
    "latin.txt": (b"one\ntwo\ncaf\xe9\n", 3, "not valid Unicode"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', 2, "broken JSON"),
    "blank.jsonl": (b'{"text": "a"}\n\n{"text": "b"}\n', 2, "empty line"),
    "list.jsonl": (b'["a"]\n{"text": "a"}\n', 1, "a JSON object was expected"),
    "number.jsonl": (b'{"text": "a"}\n{"text": 3}\n', 2, "holds int, not a string"),
    "null.jsonl": (b'{"text": null}\n{"text": "a"}\n', 1, "holds NoneType"),
    "other.jsonl": (b'{"text": "a"}\n{"title": "b"}\n', 2, "no column 'text'; there are title"),
    "surrogate.jsonl": (b'{"text": "\\ud800"}\n{"text": "a"}\n', 1, "not valid Unicode"),
    "fields.csv": (b'text,n\n"a\nb",1\nc\n', 4, "1 field where the header has 2"),
    "blank.csv": (b"text,n\na,1\n ,2\n", 3, "empty"),
    "latin.csv": (b"text\ncaf\xe9\na\n", 2, "not valid Unicode"),
    "quote.csv": (b'text\na\n"b\nc\n', 3, "broken CSV"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_row_is_reported_with_its_line(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content, line, reason = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING, "llm2comp"):
        assert all(row["text"].strip() for row in read(path, "skip"))
    (message,) = caplog.messages
    assert message.startswith(f"{path}: skipped 1 bad row of ")


def test_a_bad_row_of_parquet_is_reported_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"] * 1500 + [None, "b"]}), path)
    with pytest.raises(UserError, match=r"a\.parquet:1501: column 'text' holds NoneType"):
        read(path)
    assert len(read(path, "skip")) == 1501


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet"])
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    texts = ["one", "two\u2028still two", "日本語 🦉", "x" * 200_000]
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"text": texts}), path)
    else:
        lines = {
            "a.txt": texts,
            "a.jsonl": [f'{{"text": "{text}"}}' for text in texts],
            "a.csv": ["text", *texts],
        }[name]
        path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    assert [row["text"] for row in read(path)] == texts


def test_columns_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("body,id\nhello,1\n")
    assert read(path, columns={"text": "body"}) == [{"text": "hello"}]
    with pytest.raises(UserError, match=r"no column 'text'; there are body, id \(map it: columns"):
        read(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.csv: cannot be read: No such file"):
        read(tmp_path / "gone.csv")
    (tmp_path / "a.xml").write_text("<a/>")
    with pytest.raises(UserError, match=r"cannot read \.xml; use \.txt, \.jsonl, \.json, \.csv"):
        read(tmp_path / "a.xml")
    (tmp_path / "a.parquet").write_text("not parquet")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read(tmp_path / "a.parquet")


def test_an_unknown_source_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="nearest: 'boolq-passages'"):
        read("boolq-pasages")


@pytest.mark.parametrize("name", ["squad-dev", "stsb", "trec", "smollm2-135m"])
def test_evaluation_sets_are_refused_before_any_download(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} .* never trained on"):
        read(name)


def test_an_unreachable_hub_is_one_line_that_names_the_packaged_sources(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("name resolution failed\nretrying")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(UserError, match=r"hub cannot be reached.*llm2comp data list") as error:
        read("owner/name:config")
    assert "\n" not in str(error.value)


def test_hub_rows_are_streamed_at_one_commit_and_only_the_columns_that_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"text": ["a", None], "beside": ["b", "c"], "other": [1, 2]})
    pq.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    calls: list[object] = []
    build = datasets.load_dataset_builder
    asked: list[object] = []

    def load(*args: object, **options: object) -> datasets.DatasetBuilder:
        calls.append((args, options))
        return build(str(tmp_path))

    def info(*args: object, **options: object) -> SimpleNamespace:
        asked.append((args[1], options["revision"]))
        return HUB_DATASET

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr("datasets.load_dataset_builder", load)
    assert read("owner/name:config", "skip", split="test", revision="v2") == [{"text": "a"}]
    assert calls == [(("owner/name", "config"), {"revision": "c0ffee"})]
    assert asked == [("owner/name", "v2")]
    with pytest.raises(UserError, match="owner/name:2: column 'text' holds NoneType"):
        read("owner/name", split="test")
    with pytest.raises(UserError, match=r"owner/name, split train: Bad split: train\. Available"):
        read("owner/name")
    stream = hub.read("owner/name", "test", None, lambda names: names[1:2])
    assert list(stream) == [
        (1, {"text": None, "beside": "b", "other": None}),
        (2, {"text": None, "beside": "c", "other": None}),
    ]


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A snapshot that `hf download --repo-type dataset` left, and a hub that does not answer."""

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("name resolution failed")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "datasets--owner--name"
    snapshot = repository / "snapshots" / ("c0ffee" * 7)[:40]
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    return snapshot


def test_a_dataset_in_the_hubs_cache_is_read_without_the_hub(
    hub_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (hub_cache / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    with caplog.at_level(logging.INFO, "llm2comp"):
        assert [row["text"] for row in read("owner/name")] == ["a", "b"]
    assert f"owner/name: the hub cannot be asked; commit {hub_cache.name} is in its" in caplog.text
    source = DataSource(source="owner/name")
    assert origins.record([source], {}) == {"owner/name": {"commit": hub_cache.name}}
    assert read("owner/name", revision=hub_cache.name) == [{"text": "a"}, {"text": "b"}]
    with pytest.raises(UserError, match=r"no whole 'owner/name' at revision 'v2' on this machine"):
        read("owner/name", revision="v2")


def test_a_dataset_of_which_the_cache_has_some_parts_only_is_refused(hub_cache: Path) -> None:
    for part in (0, 2):
        table = pa.table({"text": [f"of part {part}"]})
        pq.write_table(table, hub_cache / f"train-0000{part}-of-00003.parquet")
    with pytest.raises(UserError, match="owner/name: has 2 of the 3 parts of train; download"):
        read("owner/name")


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n\n"])
def test_blank_lines_of_a_csv_file_are_no_rows(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"\ntext,n\none,1\n\ntwo,2{end}".encode())
    assert read(path) == [{"text": "one"}, {"text": "two"}]
    path.write_bytes(f"\ntext,n\none,1\n\ntwo{end}".encode())
    with pytest.raises(UserError, match=r"a\.csv:5: 1 field where the header has 2"):
        read(path)
