"""Files in other encodings, repeated names and broken columns: one line that names the place."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm2comp.data import sources
from llm2comp.data.text_files import read_texts
from llm2comp.errors import UserError
from llm2comp.evaluation.own_data.pairs import read_pairs
from llm2comp.recipe_parts import DataSource

CONTENT = {
    ".txt": "one line\nanother line\n",
    ".jsonl": '{"text": "one line"}\n{"text": "another line"}\n',
    ".csv": "text,n\none line,1\nanother line,2\n",
}


def read(path: Path, on_bad_row: str = "fail", **fields: object) -> list[str]:
    source = DataSource.model_validate({"source": str(path)} | fields)
    return [row["text"] for row in sources.rows(source, ["text"], on_bad_row)]


@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", CONTENT)
def test_a_file_in_another_encoding_is_refused_as_a_whole(
    tmp_path: Path, suffix: str, encoding: str, on_bad_row: str
) -> None:
    path = tmp_path / f"texts{suffix}"
    path.write_text(CONTENT[suffix], encoding=encoding, newline="")
    for reading in (lambda: read(path, on_bad_row), lambda: list(read_texts(path))):
        with pytest.raises(UserError, match=r"texts\.\w+: .*save it as UTF-8") as raised:
            reading()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", CONTENT)
def test_a_single_nul_byte_makes_its_row_bad(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"texts{suffix}"
    path.write_bytes(CONTENT[suffix].encode().replace(b"another", b"ano\0ther"))
    line = 3 if suffix == ".csv" else 2
    with pytest.raises(UserError, match=rf":{line}: holds a NUL byte"):
        read(path)
    with pytest.raises(UserError, match=rf":{line}: holds a NUL byte"):
        list(read_texts(path))
    assert read(path, "skip") == ["one line"]


def test_chinese_in_utf_16_without_a_mark_trains_on_nothing(tmp_path: Path) -> None:
    """It has few NUL bytes, and none of its rows is good."""
    path = tmp_path / "a.txt"
    path.write_bytes("\n".join(["河流从高山流下来" * 5] * 20).encode("utf-16-le"))
    with pytest.raises(UserError, match="all 20 rows are bad"):
        read(path, "skip")


def test_a_nul_that_json_spells_is_not_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a\0b"}) + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl:1: column 'text' holds a NUL character"):
        read(path)


def test_a_key_that_is_there_twice_makes_a_row_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"text": "first", "text": "second"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: broken JSON \(the key 'text' is there twice"):
        read(path)
    assert read(path, "skip") == ["fine"]


@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, on_bad_row: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,id,text\na,1,b\n")
    with pytest.raises(UserError, match=r"a\.csv:1: there are two columns 'text'"):
        read(path, on_bad_row)
    path.write_text("text,,\na,1,b\n")  # as spreadsheets write empty columns
    assert read(path) == ["a"]
    table = tmp_path / "a.parquet"
    columns = [pa.array(["a"]), pa.array(["b"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["text", "text"]), table)
    with pytest.raises(UserError, match=r"a\.parquet: there are two columns 'text'"):
        read(table, on_bad_row)


@pytest.fixture
def with_a_broken_column(tmp_path: Path) -> Path:
    """A Parquet file whose column beside the text is overwritten."""
    path = tmp_path / "broken.parquet"
    values = [f"{i} is beside the text" for i in range(500)]
    table = pa.table({"text": [f"text {i}" for i in range(500)], "beside": values})
    pq.write_table(table, path, use_dictionary=False, compression="none")
    chunk = pq.read_metadata(path).row_group(0).column(1)
    content = bytearray(path.read_bytes())
    start, size = chunk.data_page_offset, chunk.total_compressed_size
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)
    with pytest.raises((pa.ArrowException, OSError)):
        pq.read_table(path)
    return path


def test_a_broken_column_beside_the_text_does_not_matter(with_a_broken_column: Path) -> None:
    assert read(with_a_broken_column) == [f"text {i}" for i in range(500)]
    assert list(read_texts(with_a_broken_column)) == [f"text {i}" for i in range(500)]
    with pytest.raises(UserError, match=r"no column 'body'; there are text, beside;"):
        read(with_a_broken_column, columns={"text": "body"})


def test_a_broken_text_is_one_line(with_a_broken_column: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.parquet"
    shutil.copy(with_a_broken_column, copy)
    with pytest.raises(UserError, match=r"copy\.parquet: ") as raised:
        read(copy, columns={"text": "beside"})
    assert "\n" not in str(raised.value)


def test_a_column_that_is_not_utf_8_is_named_in_text(tmp_path: Path) -> None:
    path = tmp_path / "latin.csv"
    path.write_bytes(b"caf\xe9\na\n")
    for reader in (read, read_pairs, lambda file: list(read_texts(file))):
        with pytest.raises(UserError, match=r"caf\\udce9"):
            reader(path)
