"""Many files become as many files of vectors: the same vectors, each row once, whatever happens."""

import gzip
import json
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from shard_texts import read_vectors, write_texts
from typer.testing import CliRunner

import llm2comp
from llm2comp.cli.app import app
from llm2comp.errors import UserError
from llm2comp.inference import encode_file as encoding
from llm2comp.inference.bulk import shard_file
from llm2comp.inference.bulk.run import Encoded
from llm2comp.inference.embedding_files import content_of
from llm2comp.utils.choices import EmbeddingPrecision

KEPT = ["id", "text"]


@pytest.fixture
def texts(tmp_path: Path, sentences: list[str]) -> Path:
    folder = tmp_path / "texts"
    write_texts(folder, 3, 20, sentences)
    return folder


def encode(encoder: Path, texts: Path | str, out: Path | str, **options: Any) -> Encoded:
    return llm2comp.encode_files(
        encoder, texts, out, **{"dtype": "float32", "keep": KEPT, **options}
    )


def names(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.*"))


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "binary"])
def test_vectors_are_those_of_each_file_alone(
    encoder: Path, texts: Path, tmp_path: Path, precision: EmbeddingPrecision
) -> None:
    out = tmp_path / "out"
    done = encode(encoder, texts / "*.jsonl", out, precision=precision, dim=8)
    assert (done.files, done.unchanged, done.rows, done.failed) == (3, 0, 60, {})
    for file in texts.iterdir():
        alone = tmp_path / "alone.parquet"
        llm2comp.encode_file(encoder, file, alone, dtype="float32", precision=precision, dim=8)
        found = out / f"{file.stem}.parquet"
        table, wanted = pq.read_table(found), pq.read_table(alone)
        assert table.column_names == ["id", "text", "embedding"]
        assert table["embedding"].equals(wanted["embedding"])
        assert table["embedding"].type.list_size == (1 if precision == "binary" else 8)
        assert table["text"].equals(wanted["text"])
        rows = map(json.loads, file.read_text().splitlines())
        assert table["id"].to_pylist() == [str(row["id"]) for row in rows]
        contents = [content_of(one) for one in (found, alone)]
        assert len({one.to_json() for one in contents if one}) == 1  # with the ranges of int8
    origin = json.loads(pq.read_schema(found).metadata[b"llm2comp.origin"])
    assert origin["model"] == str(encoder)
    assert origin["dtype"] == "float32"


def test_rows_stay_together_in_files_of_many_chunks(
    encoder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(encoder, texts, tmp_path / "whole")
    monkeypatch.setattr(encoding, "CHUNK_BATCHES", 3)
    encode(encoder, texts, tmp_path / "chunks", batch_size=1)
    assert pq.ParquetFile(tmp_path / "chunks" / "part-00.parquet").num_row_groups == 7
    found, wanted = (read_vectors(tmp_path / name) for name in ("chunks", "whole"))
    assert [(name, text) for name, (text, _) in found.items()] == [
        (name, text) for name, (text, _) in wanted.items()
    ]
    vectors = [np.array([vector for _, vector in one.values()]) for one in (found, wanted)]
    np.testing.assert_allclose(*vectors, atol=1e-6)


def test_columns_are_kept_on_request_alone(encoder: Path, texts: Path, tmp_path: Path) -> None:
    encode(encoder, texts, tmp_path / "none", keep=())
    assert pq.read_schema(tmp_path / "none" / "part-00.parquet").names == ["embedding"]
    encode(encoder, texts, tmp_path / "texts-only", keep=["text"])
    assert llm2comp.search(
        encoder, tmp_path / "texts-only" / "part-00.parquet", "whales", dtype="float32"
    )
    with pytest.raises(UserError, match="it can be id, text, or id,text"):
        encode(encoder, texts, tmp_path / "other", keep=["other"])


def test_every_kind_of_file_and_a_tree_of_them(encoder: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    (texts / "2024").mkdir(parents=True)
    (texts / "2025").mkdir()
    (texts / "2024" / "a.txt").write_text("one\n\ntwo\n")
    with gzip.open(texts / "2025" / "a.csv.gz", "wt") as file:
        file.write("text,n\nthree,1\n")
    pq.write_table(pa.table({"n": [1, 2], "text": ["four", ""]}), texts / "b.parquet")
    (texts / "c.jsonl").write_text("")
    (texts / "_SUCCESS").write_text("")
    done = encode(encoder, f"{texts}/", tmp_path / "out", keep=["text"])
    assert (done.files, done.rows) == (4, 6)
    found = {name: pq.read_table(tmp_path / "out" / name)["text"].to_pylist() for name in OUTPUTS}
    assert found == OUTPUTS


OUTPUTS = {
    "2024/a.parquet": ["one", "", "two"],
    "2025/a.parquet": ["three"],
    "b.parquet": ["four", ""],
    "c.parquet": [],
}


def test_the_same_call_goes_on_and_a_changed_file_is_encoded_again(
    encoder: Path, texts: Path, tmp_path: Path
) -> None:
    out, pattern = tmp_path / "out", texts / "*.jsonl"
    encode(encoder, texts / "part-0[01].jsonl", out)
    before = {file: file.stat().st_ino for file in out.glob("*.parquet")}
    assert len(before) == 2
    done = encode(encoder, pattern, out)
    assert (done.files, done.unchanged, done.rows) == (3, 2, 20)
    assert {file: file.stat().st_ino for file in before} == before

    changed, time_before = texts / "part-01.jsonl", (texts / "part-01.jsonl").stat()
    changed.write_text(changed.read_text().replace("a", "o"))  # as many bytes
    os.utime(changed, ns=(time_before.st_atime_ns, time_before.st_mtime_ns))
    cut = out / "part-00.parquet"
    cut.write_bytes(cut.read_bytes()[:-100])
    done = encode(encoder, pattern, out)
    assert (done.unchanged, done.rows) == (1, 40)
    fresh = tmp_path / "fresh"
    encode(encoder, pattern, fresh)
    assert read_vectors(out) == read_vectors(fresh)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"precision": "float16"}, "precision float32, and not float16"),
        ({"dim": 8}, "dim none, and not 8"),
        ({"prompt": "query"}, "prompt none, and not query"),
        ({"keep": ["id"]}, "keep id,text, and not id"),
        ({"dtype": "bfloat16"}, "dtype float32, and not bfloat16"),
    ],
)
def test_a_folder_is_of_one_model_and_its_settings(
    encoder: Path, texts: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    out = tmp_path / "out"
    encode(encoder, texts, out)
    before = {name: (out / name).read_bytes() for name in names(out)}
    with pytest.raises(UserError, match=said):
        encode(encoder, texts, out, **options)
    assert {name: (out / name).read_bytes() for name in names(out)} == before


def test_another_model_of_the_same_name_is_refused(
    encoder: Path, texts: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(encoder, model)
    encode(model, texts, tmp_path / "out")
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: value * 1.001 for name, value in weights.items()},
        model / "model.safetensors",
        {"format": "pt"},
    )
    (model / "llm2comp.json").unlink()  # else its loading is refused
    with pytest.raises(UserError, match="holds vectors of another model"):
        encode(model, texts, tmp_path / "out")


def test_a_broken_row_is_named_and_the_other_files_go_on(
    encoder: Path, texts: Path, tmp_path: Path
) -> None:
    broken, out = texts / "part-01.jsonl", tmp_path / "out"
    good = broken.read_text()
    broken.write_text(good.replace('"id": 25, "text"', '"id": 25, "words"'))
    command = ["encode", str(encoder), str(texts / "*.jsonl"), "--out", str(out)]
    command += ["--dtype", "float32", "--keep", "id,text"]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 1
    first = f"{broken}:6: no 'text'; it has id, words, other"
    assert ended.stderr.splitlines()[-2:] == [
        f"llm2comp: {first}",
        f"llm2comp: 1 file failed; {out}/_failed.jsonl lists it; correct it and repeat the command",
    ]
    assert names(out) == ["_encoding.json", "_failed.jsonl", "_writer.lock"] + [
        f"part-0{number}.parquet" for number in (0, 2)
    ]
    listed = [json.loads(line) for line in (out / "_failed.jsonl").read_text().splitlines()]
    assert listed == [{"file": str(broken), "error": first}]

    broken.write_text(good)
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 0
    assert ended.stdout == f"{out}: 20 embeddings; 3 files are encoded, 2 of them before\n"
    assert not (out / "_failed.jsonl").exists()
    assert [int(one) for one in read_vectors(out)] == list(range(60))


def test_bad_rows_are_left_out_and_listed_on_request(
    encoder: Path, texts: Path, tmp_path: Path
) -> None:
    broken, out = texts / "part-01.jsonl", tmp_path / "out"
    good = broken.read_text()
    lines = good.splitlines()
    lines[5] = lines[5].replace('"text"', '"words"')
    lines[7] = lines[7].replace('"id": 27', '"id": 1.5')
    lines[19] = lines[19][:-1]
    broken.write_text("\n".join(lines))
    assert set(encode(encoder, texts, out).failed) == {str(broken)}

    command = ["encode", str(encoder), str(texts), "--out", str(out), "--dtype", "float32"]
    command += ["--keep", "id,text", "--on-bad-row", "skip"]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout == f"{out}: 17 embeddings; 3 files are encoded, 2 of them before\n"
    said = f"llm2comp: 3 bad rows were left out; {out}/_skipped lists them"
    assert ended.stderr.splitlines()[-1] == said
    rows = {str(number) for number in range(60)} - {"25", "27", "39"}
    assert set(read_vectors(out)) == rows
    assert not (out / "_failed.jsonl").exists()
    skipped = [json.loads(line) for line in (out / "_skipped/part-01.jsonl").open()]
    assert [(one["file"], one["row"]) for one in skipped] == [(str(broken), n) for n in (6, 8, 20)]
    reasons = ["no 'text'; it has id, words", "the id must be a string", "broken JSON"]
    assert all(one["error"].startswith(why) for one, why in zip(skipped, reasons, strict=True))
    alone = encode(encoder, texts / "part-00.jsonl", tmp_path / "alone", on_bad_row="skip")
    assert (alone.rows, alone.skipped) == (20, 0)
    assert not (tmp_path / "alone" / "_skipped").exists()

    broken.write_text(good)  # the list goes with the rows
    assert encode(encoder, texts, out, on_bad_row="skip").skipped == 0
    assert sorted(map(int, read_vectors(out))) == list(range(60))
    assert not list((out / "_skipped").iterdir())
    broken.write_text('{"words": "a"}\n{"words": "b"}\n')
    done = encode(encoder, texts, out, on_bad_row="skip")
    said = f"{broken}: all rows are bad; the first is row 1: no 'text'; it has words"
    assert (done.failed, done.skipped) == ({str(broken): said}, 0)


def test_an_id_must_be_there_and_be_one(encoder: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a", "id": 1}\n{"text": "b", "id": 1.5}\n')
    done = encode(encoder, texts, tmp_path / "out")
    said = f"{texts}:2: the id must be a string or an integer; it is 1.5"
    assert done.failed == {str(texts): said}


def test_what_may_pass_is_tried_again(
    encoder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = shard_file.embed, []

    def fails_at_first(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) in failing:
            raise ConnectionResetError("the other end went away")
        return real(*arguments)

    monkeypatch.setattr(shard_file, "embed", fails_at_first)
    failing = {2}
    done = encode(encoder, texts, tmp_path / "once")
    assert (done.files, done.rows, done.failed, len(calls)) == (3, 60, {}, 4)

    calls.clear()
    failing = {2, 4}
    done = encode(encoder, texts, tmp_path / "twice")
    name = f"{texts}/part-01.jsonl"
    assert done.failed == {name: f"{name}: ConnectionResetError: the other end went away"}
    assert (done.files, done.rows, len(calls)) == (2, 40, 4)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_nothing_is_half_written_and_the_next_call_goes_on(
    encoder: Path, texts: Path, tmp_path: Path, sentences: list[str]
) -> None:
    write_texts(texts, 1, 5, sentences)
    out = tmp_path / "out"
    command = ["encode", str(encoder), str(texts), "--out", str(out)]
    command += ["--dtype", "float32", "--keep", "id,text"]
    small = 3_500  # fits five rows
    with no_file_above(small):
        ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 2
    assert ended.stderr.splitlines()[-1] == (
        "llm2comp: disk full ([Errno 27] File too large) at part-01.parquet; free some space, and "
        "repeat the command, which goes on from here"
    )
    assert names(out) == ["_encoding.json", "_writer.lock", "part-00.parquet"]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 0
    assert ended.stdout == f"{out}: 40 embeddings; 3 files are encoded, 1 of them before\n"


def test_a_driver_that_is_killed_goes_on(
    encoder: Path, tmp_path: Path, sentences: list[str]
) -> None:
    texts, out, whole = (tmp_path / name for name in ("texts", "out", "whole"))
    write_texts(texts, 8, 150, sentences, longest=30)
    slowly = partial(encode, encoder, texts, out, batch_size=1)
    process = multiprocessing.get_context("fork").Process(target=slowly)
    process.start()
    while process.is_alive() and len(list(out.glob("*.parquet"))) < 2:
        time.sleep(0.01)
    while process.is_alive() and not list(out.glob(".*.part")):
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    there = len(list(out.glob("*.parquet")))
    assert 2 <= there < 8
    done = slowly()
    assert (done.files, done.unchanged) == (8, there)
    encode(encoder, texts, whole, batch_size=1)
    assert read_vectors(out) == read_vectors(whole)
    assert not list(out.glob(".*"))


def test_files_anywhere_that_fsspec_reaches(encoder: Path, texts: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(f"{texts}/", "/bucket/texts/", recursive=True)
    with memory.open("/bucket/texts/part-09.jsonl", "w") as file:
        file.write('{"id": 1, "text": 2}\n')
    done = encode(encoder, "memory://bucket/texts/*.jsonl", "memory://bucket/out")
    name = "memory://bucket/texts/part-09.jsonl"
    assert done.failed == {name: f"{name}:1: 'text' is not a string but int"}
    assert encode(encoder, "memory://bucket/texts/*.jsonl", "memory://bucket/out").unchanged == 3
    assert not [one for one in memory.find("/bucket/out") if one.endswith(".part")]
    memory.get("/bucket/out/", str(tmp_path / "copy"), recursive=True)
    encode(encoder, texts, tmp_path / "out")
    assert read_vectors(tmp_path / "copy") == read_vectors(tmp_path / "out")


def test_nothing_of_the_user_s_is_replaced(encoder: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    pq.write_table(pa.table({"mine": [1]}), out / "part-01.parquet")
    before = (out / "part-01.parquet").read_bytes()
    with pytest.raises(UserError, match="part-01.parquet: is a table of something else"):
        encode(encoder, texts, out)
    assert (out / "part-01.parquet").read_bytes() == before

    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "part-00.jsonl").write_text('{"id": 1, "text": "a"}\n')
    encode(encoder, texts, tmp_path / "one")
    with pytest.raises(UserError, match="holds the vectors of .*texts/part-00.jsonl"):
        encode(encoder, tmp_path / "more", tmp_path / "one")


def test_mistakes_are_one_line(encoder: Path, texts: Path, tmp_path: Path) -> None:
    (texts / "part-00.csv").write_text("text\na\n")
    with pytest.raises(UserError, match=r"part-00.csv and .*part-00.jsonl would both become"):
        encode(encoder, texts, tmp_path / "out")
    (texts / "part-00.csv").rename(texts / "notes.md")
    with pytest.raises(UserError, match="notes.md: cannot be read by its ending; name files of"):
        encode(encoder, texts, tmp_path / "out")
    with pytest.raises(UserError, match="there is no such file"):
        encode(encoder, texts / "*.txt", tmp_path / "out")
    with pytest.raises(UserError, match="nowhere://x/.*Protocol not known"):
        encode(encoder, "nowhere://x/*.txt", tmp_path / "out")
    with pytest.raises(UserError, match="is in the folder of the model; name another"):
        encode(encoder, texts / "*.jsonl", encoder / "vectors")
    with pytest.raises(UserError, match="is in it; name another"):
        encode(encoder, texts / "*.jsonl", texts)
    ended = CliRunner().invoke(
        app, ["encode", str(encoder), str(texts / "*.jsonl"), "--out", str(tmp_path / "v.npy")]
    )
    assert ended.exit_code == 2
    assert "many files are written to a folder; name a folder" in ended.stderr
    assert not (tmp_path / "out").exists()
