"""A later call with a folder of vectors: what it takes as done, and what it encodes again."""

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from shard_texts import write_texts
from tokenizers import Tokenizer

import llm2comp
from llm2comp.errors import UserError
from llm2comp.inference.bulk.vector_folder import LOCK
from llm2comp.utils.checksums import fingerprint


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


def test_a_second_command_is_refused_while_the_first_one_writes(
    encoder: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    llm2comp.encode_files(encoder, texts / "part-00.jsonl", out, dtype="float32")
    with FileLock(out / LOCK), pytest.raises(UserError, match="another process writes to it; wait"):
        llm2comp.encode_files(encoder, texts, out, dtype="float32")
    assert [file.name for file in out.glob("*.parquet")] == ["part-00.parquet"]
    assert llm2comp.encode_files(encoder, texts, out, dtype="float32").unchanged == 1


def test_the_vectors_of_a_file_that_is_gone_stay(
    encoder: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    llm2comp.encode_files(encoder, texts, out, dtype="float32")
    before = (out / "part-00.parquet").read_bytes()
    (texts / "part-00.jsonl").unlink()
    done = llm2comp.encode_files(encoder, texts, out, dtype="float32")
    assert (done.files, done.unchanged, done.failed) == (2, 2, {})
    assert (out / "part-00.parquet").read_bytes() == before


def in_cache(folder: Path, cache: Path, commit: str) -> Path:
    """Copy a model to a cache of the hub, as the newest commit of `me/tiny`."""
    cached = cache / "models--me--tiny"
    (cached / "refs").mkdir(parents=True, exist_ok=True)
    (cached / "refs" / "main").write_text(commit)
    return Path(shutil.copytree(folder, cached / "snapshots" / commit))


def test_a_model_of_the_hub_is_known_by_its_commit(
    encoder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, out = tmp_path / "hub", tmp_path / "out"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    snapshot = in_cache(encoder, cache, "a" * 40)
    llm2comp.encode_files("me/tiny", texts, out, dtype="float32")
    before = fingerprint(snapshot)
    (snapshot / "another.txt").write_text("downloaded later")
    assert llm2comp.encode_files("me/tiny", texts, out, dtype="float32").unchanged == 3
    in_cache(encoder, cache, "b" * 40)
    with pytest.raises(UserError, match="holds vectors of another model"):
        llm2comp.encode_files("me/tiny", texts, out, dtype="float32")

    known = out / "_encoding.json"  # as an older version wrote it
    known.write_text(known.read_text().replace("a" * 40, before))
    assert llm2comp.encode_files("me/tiny", texts, out, dtype="float32").files == 3
    (cache / "models--me--tiny" / "snapshots" / ("b" * 40) / "another.txt").write_text("more")
    with pytest.raises(UserError, match="holds vectors of another model"):
        llm2comp.encode_files("me/tiny", texts, out, dtype="float32")


@pytest.mark.parametrize("place", ["HF_HUB_CACHE", "SENTENCE_TRANSFORMERS_HOME"])
def test_a_static_model_of_the_hub_is_found(
    place: str, encoder: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)])
    static.save_pretrained(str(tmp_path / "static"))
    (tmp_path / "static" / "config.json").unlink(missing_ok=True)
    in_cache(tmp_path / "static", tmp_path / "cache", "a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    if place == "HF_HUB_CACHE":
        monkeypatch.setattr(constants, place, str(tmp_path / "cache"))
    else:
        monkeypatch.setenv(place, str(tmp_path / "cache"))
    for unchanged in (0, 3):
        done = llm2comp.encode_files("me/tiny", texts, tmp_path / "out", dtype="float32")
        assert (done.files, done.unchanged) == (3, unchanged)
    assert json.loads((tmp_path / "out" / "_encoding.json").read_text())["model_sha256"] == "a" * 40
