"""Files to be encoded: every row is kept in order, and a bad one is named."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm2comp.data.text_files import read_texts, replace_surrogates
from llm2comp.errors import UserError

TEXTS = ["first", "", "née 你好 🙂", "a line\u2028with a separator", "x" * 200_000]


def write(file: Path, texts: list[str]) -> Path:
    if file.suffix == ".txt":
        file.write_bytes("".join(f"{text}\n" for text in texts).encode())
    elif file.suffix == ".jsonl":
        file.write_text("".join(f"{json.dumps({'id': 1, 'text': text})}\n" for text in texts))
    elif file.suffix == ".csv":
        with file.open("w", encoding="utf-8-sig", newline="") as stream:
            csv.writer(stream).writerows([["id", "text"], *([1, text] for text in texts)])
    else:
        pq.write_table(pa.table({"id": [1] * len(texts), "text": texts}), file)
    return file


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".parquet"])
def test_every_row_comes_back_in_order(tmp_path: Path, kind: str) -> None:
    assert list(read_texts(write(tmp_path / f"texts{kind}", TEXTS))) == TEXTS


def test_line_breaks_within_a_csv_cell_stay_in_the_text(tmp_path: Path) -> None:
    texts = ["one\ntwo", "three"]
    assert list(read_texts(write(tmp_path / "texts.csv", texts))) == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a\.jsonl:2: broken JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n', r"a\.jsonl:2: empty line"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl:1: 'text' is not a string but int"),
        ("a.jsonl", b'{"body": "y"}\n', r"a\.jsonl:1: no 'text'; it has body"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: a JSON object was expected"),
        ("a.csv", b"id,text\n1,x\n2\n", r"a\.csv:3: 1 field where the header has 2"),
        ("a.csv", b"id,body\n1,x\n", r"a\.csv:2: no 'text'; it has id, body"),
        ("a.txt", b"fine\n\xff\xfe\n", r"a\.txt:2: not UTF-8"),
        ("a.parquet", b"PAR2 nothing", r"a\.parquet: "),
        ("a.docx", b"", r"\.txt, \.jsonl, \.json, \.csv, \.parquet"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        list(read_texts(tmp_path / name))
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt: cannot be read: No such file"):
        list(read_texts(tmp_path / "gone.txt"))


def test_lone_surrogates_are_replaced_and_pairs_joined() -> None:
    assert replace_surrogates("a\ud800b") == "a\ufffdb"
    assert replace_surrogates("a\udc00") == "a\ufffd"
    assert replace_surrogates("\ud83d\ude42") == "🙂"
    assert replace_surrogates("\ufeffkept né 🙂") == "\ufeffkept né 🙂"
