"""A corpus is checked as a whole before anything is encoded, and its values stay what they are."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm2comp.errors import UserError
from llm2comp.retrieval.corpus import Corpus, given_rows
from llm2comp.retrieval.rows import Kinds, Row


def jsonl(folder: Path, *rows: dict[str, object]) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_rows_of_jsonl_keep_ids_and_metadata(tmp_path: Path) -> None:
    name = jsonl(
        tmp_path,
        {"id": "a", "text": "one", "year": 1990, "ok": True},
        {"id": 7, "text": "two", "year": 1990.5, "tags": ["x"]},
        {"id": "c", "text": " "},
    )
    corpus = Corpus.survey(name)
    assert corpus.total == 2
    assert corpus.kinds.known == {"year": "float", "ok": "bool"}
    assert [(row.id, corpus.kinds.values(row)) for row in corpus.rows()] == [
        ("a", {"year": 1990.0, "ok": True}),
        ("7", {"year": 1990.5, "ok": None}),
    ]


def test_csv_has_numbers_where_nothing_is_lost_by_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,year,zip,version,mixed\n1,1990,01234,1.10,5\n2,,80331,1.9,a\n")
    corpus = Corpus.survey(str(file))
    assert corpus.kinds.known == {"year": "int", "zip": "str", "version": "str", "mixed": "str"}
    assert [row.text for row in corpus.rows()] == ["1", "2"]
    assert [corpus.kinds.values(row) for row in corpus.rows()] == [
        {"year": 1990, "zip": "01234", "version": "1.10", "mixed": "5"},
        {"year": None, "zip": "80331", "version": "1.9", "mixed": "a"},
    ]


def test_the_id_of_a_line_is_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes" / "sub").mkdir(parents=True)
    (tmp_path / "notes" / "a.txt").write_text("one\n\nthree\n")
    (tmp_path / "notes" / "sub" / "b.txt").write_text("four\n")
    assert [row.id for row in Corpus.survey("notes").rows()] == [
        "notes/a.txt:1",
        "notes/a.txt:3",
        "notes/sub/b.txt:1",
    ]
    assert [row.id for row in Corpus.survey("notes/a.txt").rows()] == [
        "notes/a.txt:1",
        "notes/a.txt:3",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "train-times.txt",
        "test-results.txt",
        "dev/a.txt",
        "__old/a.txt",
        "config.json",
        "dataset_dict.json",
    ],
)
def test_a_folder_is_read_whole_whatever_its_files_are_called(tmp_path: Path, name: str) -> None:
    """A source of training data leaves out files whose names have the words of other splits."""
    ending = Path(name).suffix
    for one in (f"whales{ending}", name, f".hidden{ending}", f".old/a{ending}", "notes.md"):
        (tmp_path / one).parent.mkdir(exist_ok=True)
        content = json.dumps([{"text": one}]) if ending == ".json" else f"{one}\n"
        (tmp_path / one).write_text(content)
    found = {row.text for row in Corpus.survey(str(tmp_path)).rows()}
    assert found == {f"whales{ending}", name}


@pytest.mark.parametrize("name", ["a.txt", "a.json"])
def test_settings_of_a_dataset_beside_other_files_are_left_out(tmp_path: Path, name: str) -> None:
    texts = {"a.txt": "a text\n", "a.json": '[{"text": "a text"}]'}
    (tmp_path / name).write_text(texts[name])
    (tmp_path / "dataset_infos.json").write_text('{\n "default": {"splits": {}}\n}\n')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert [row.text for row in Corpus.survey(str(tmp_path)).rows()] == ["a text"]


def test_a_folder_of_save_to_disk_is_no_corpus(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a"]})
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "two")
    for name in ("one", "two"):
        with pytest.raises(UserError, match="is a folder of save_to_disk"):
            Corpus.survey(str(tmp_path / name))


def test_a_file_has_one_name_in_ids_however_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    for folder in (home / "notes", tmp_path / "other"):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("one\n")
    (home / "link").symlink_to(home / "notes")
    monkeypatch.chdir(home / "notes")
    names = ["a.txt", "../notes/a.txt", str(home / "notes"), str(home / "link" / "*.txt")]
    found = [[row.id for row in Corpus.survey(name, home).rows()] for name in names]
    assert found == [["notes/a.txt:1"]] * 4
    other = Corpus.survey("../../other/a.txt", home)
    assert [row.id for row in other.rows()] == [f"{tmp_path.resolve()}/other/a.txt:1"]


def test_numbers_of_csv_that_are_no_floats_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,n\na,9007199254740993\nb,0.5\n")
    corpus = Corpus.survey(str(tmp_path / "rows.csv"))
    assert [corpus.kinds.values(row) for row in corpus.rows()] == [
        {"n": "9007199254740993"},
        {"n": "0.5"},
    ]


def test_parquet_keeps_types_and_leaves_vectors_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = pa.table({"text": ["a", "b"], "n": [1, None], "embedding": [[0.1], [0.2]]})
    pq.write_table(table, tmp_path / "rows.parquet")
    corpus = Corpus.survey(str(tmp_path / "rows.parquet"))
    assert corpus.kinds.known == {"n": "int"}
    assert "left out the columns embedding" in caplog.text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], r":2: the id 'a' is there twice"),
        ([{"id": "a", "text": "x"}, {"text": "y"}], r":2: some rows have an id"),
        ([{"text": "y"}, {"id": "a", "text": "x"}], r":2: some rows have an id"),
        ([{"id": [1], "text": "x"}], r":1: the id must be a string or an integer"),
        ([{"id": "", "text": "x"}], r":1: the id must be a string or an integer"),
        ([{"text": "x", "n": 1}, {"text": "x", "n": "1"}], r":2: 'n' is '1', and other rows"),
        ([{"text": "x", "n": 2**70}], r":1: 'n' is .* 64 bits"),
        ([{"text": "x", "vector": 1}], r":1: the column 'vector' has a name"),
        ([{"text": "x", "a.b": 1}], r":1: the column 'a.b' has a name"),
        ([{"text": "x", "year": 1, "Year": 2}], r":1: the columns 'year' and 'Year'"),
        (
            [{"text": "x", "year": 1}, {"text": "y", "Year": 2}],
            r":2: the columns 'year' and 'Year'",
        ),
        (
            [{"text": "x", "n": 2**53 + 1}, {"text": "y", "n": 0.5}],
            r":1: 'n' is .* no float equals",
        ),
        ([{"text": "x", "n": 0.5}, {"text": "y", "n": -(2**53) - 1}], r":2: 'n' is .* no float"),
        ([{"txt": "x"}], r":1: no 'text'"),
        ([{"text": ""}], "no texts in it"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, rows: list[dict[str, object]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Corpus.survey(jsonl(tmp_path, *rows))


def test_rows_of_a_program_are_checked_too() -> None:
    rows, kinds = given_rows([{"id": 1, "text": "x", "n": 2}])
    assert (rows, kinds) == ([Row("1", "x", {"n": 2})], Kinds({"n": "int"}))
    for bad in (
        {"text": "x"},
        {"id": "a"},
        {"id": "a", "text": " "},
        {"id": 1, "text": "x", "n": []},
        {"id": "half \ud800", "text": "x"},
        {"id": 1, "text": "x", "n": "half \ud800"},
        {"id": 1, "text": "x", "half \ud800": "n"},
        {"id": 1, "text": "x", 5: "n"},
        "text",
        None,
    ):
        with pytest.raises(UserError, match="^row 0: "):
            given_rows([bad])  # type: ignore[list-item]
    with pytest.raises(UserError, match="differ in case alone"):
        given_rows([{"id": 1, "text": "x", "lang": "de"}, {"id": 2, "text": "x", "Lang": "fr"}])


def test_not_a_number_is_a_missing_value() -> None:
    """A data frame writes a missing number so, and it is larger than all others in a filter."""
    rows, kinds = given_rows([{"id": 1, "text": "x", "n": float("nan")}])
    assert (rows, kinds) == ([Row("1", "x", {"n": None})], Kinds())


def test_an_index_keeps_the_types_of_its_columns() -> None:
    index = Kinds({"n": "int", "x": "float", "s": "str"})
    assert index.joined(Kinds({"x": "int", "new": "bool"}), "f").known == {
        **index.known,
        "new": "bool",
    }
    assert index.joined(Kinds({"s": "int"}, lenient=True), "f").known == index.known
    for kinds in (Kinds({"n": "float"}), Kinds({"s": "int"})):
        with pytest.raises(UserError, match="in the index"):
            index.joined(kinds, "f")
    with pytest.raises(UserError, match="'n' and 'N' differ in case alone"):
        index.joined(Kinds({"N": "int"}), "f")
    large = Kinds()
    large.learn(Row("a", "text", {"x": 2**53 + 1}), "f:1")
    with pytest.raises(UserError, match="f:1: 'x' is 9007199254740993, which no float equals"):
        index.joined(large, "f")
