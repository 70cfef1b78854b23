"""A later call with a folder of vectors: what it takes as done, and what it encodes again."""

import json
from pathlib import Path

import pytest
from shard_texts import write_texts

import llm2comp


@pytest.fixture
def texts(tmp_path: Path, sentences: list[str]) -> Path:
    folder = tmp_path / "texts"
    write_texts(folder, 3, 4, sentences)
    return folder


def test_files_without_their_bad_rows_are_not_whole(
    encoder: Path, texts: Path, tmp_path: Path
) -> None:
    broken, out = texts / "part-01.jsonl", tmp_path / "out"
    first, *others = broken.read_text().splitlines(keepends=True)
    broken.write_text(first + '{"words": "a"}\n' + "".join(others))
    done = llm2comp.encode_files(encoder, texts, out, dtype="float32", on_bad_row="skip")
    assert (done.failed, done.skipped) == ({}, 1)
    done = llm2comp.encode_files(encoder, texts, out, dtype="float32")
    assert set(done.failed) == {str(broken)}
    assert (done.files, done.unchanged) == (2, 2)
    (listed,) = [json.loads(line) for line in (out / "_failed.jsonl").open()]
    assert listed["file"] == str(broken)
    done = llm2comp.encode_files(encoder, texts, out, dtype="float32", on_bad_row="skip")
    assert (done.failed, done.unchanged) == ({}, 3)
    broken.write_text(first + "".join(others))
    done = llm2comp.encode_files(encoder, texts, out, dtype="float32")
    assert (done.failed, done.unchanged, done.rows) == ({}, 2, 4)
    assert not list((out / "_skipped").iterdir())
