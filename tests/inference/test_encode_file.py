"""Encoding a file: what is written, which files are refused, and how much memory it takes."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer

from llm2comp.errors import UserError
from llm2comp.evaluation import baselines
from llm2comp.inference import encode_file as encoding
from llm2comp.inference.encode_file import encode_file

HARD = ["", " ", "\0", "x" * 100_000, "née 你好 🙂 \u202e", "lone \ud800 surrogate", "<s></s>"]


@pytest.fixture(scope="module")
def model(tiny_backbone: Path) -> SentenceTransformer:
    built = baselines.build("last-token", tiny_backbone)
    built.prompts = {"query": "Question: ", "document": ""}
    return built


def write(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def test_npy_and_parquet_hold_the_model_s_embeddings(
    model: SentenceTransformer, tmp_path: Path, sentences: list[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(encoding, "CHUNK_BATCHES", 1)  # several chunks, the last one short
    file = write(tmp_path / "texts.jsonl", sentences)
    expected = model.encode(sentences)
    assert encode_file(model, file, tmp_path / "v.npy", batch_size=3) == len(sentences)
    array = np.load(tmp_path / "v.npy", allow_pickle=False)
    assert array.dtype == np.float32
    assert np.abs(array - expected).max() < 1e-5
    encode_file(model, file, tmp_path / "v.parquet", batch_size=3)
    table = pq.read_table(tmp_path / "v.parquet")
    assert table["text"].to_pylist() == sentences
    assert np.abs(np.array(table["embedding"].to_pylist()) - expected).max() < 1e-5
    assert pq.ParquetFile(tmp_path / "v.parquet").num_row_groups == 3


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_hard_texts_give_finite_embeddings(
    model: SentenceTransformer, tmp_path: Path, kind: str
) -> None:
    file = write(tmp_path / "texts.jsonl", HARD)
    assert encode_file(model, file, tmp_path / f"v.{kind}") == len(HARD)
    if kind == "npy":
        array = np.load(tmp_path / "v.npy")
        assert array.shape == (len(HARD), 32)
        assert np.isfinite(array).all()
    else:
        texts = pq.read_table(tmp_path / "v.parquet")["text"].to_pylist()
        assert texts[5] == "lone \ufffd surrogate"


def test_the_named_prompt_is_used(
    model: SentenceTransformer, tmp_path: Path, sentences: list[str]
) -> None:
    file = write(tmp_path / "texts.jsonl", sentences)
    for name, prefix in (("query", "Question: "), ("document", ""), (None, "")):
        encode_file(model, file, tmp_path / "v.npy", prompt_name=name)
        expected = model.encode([prefix + text for text in sentences])
        assert np.abs(np.load(tmp_path / "v.npy") - expected).max() < 1e-5


def test_nothing_half_written_is_left(
    model: SentenceTransformer, tmp_path: Path, sentences: list[str], monkeypatch: Any
) -> None:
    file = write(tmp_path / "texts.jsonl", sentences)
    out = tmp_path / "v.npy"
    out.write_bytes(b"what was there before")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoding, "require_finite_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        encode_file(model, file, out)
    assert out.read_bytes() == b"what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl", "v.npy"]


def test_an_embedding_that_is_not_finite_is_refused_by_row(
    tiny_backbone: Path, tmp_path: Path, sentences: list[str]
) -> None:
    broken = baselines.build("last-token", tiny_backbone)
    tokenizer = broken.tokenizer
    alien = tokenizer("你", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        broken[0].model.get_input_embeddings().weight[alien] = float("nan")
    file = write(tmp_path / "texts.jsonl", [*sentences[:2], "你"])
    with pytest.raises(UserError, match="embedding of row 3 is not finite"):
        encode_file(broken, file, tmp_path / "v.npy")
    assert not (tmp_path / "v.npy").exists()


def test_mistakes_are_one_clear_line(model: SentenceTransformer, tmp_path: Path) -> None:
    file = write(tmp_path / "texts.jsonl", ["a"])
    with pytest.raises(UserError, match=r"\.npy, \.npz or \.parquet"):
        encode_file(model, file, tmp_path / "v.csv")
    with pytest.raises(UserError, match="neither 'query' nor 'document'"):
        encode_file(model, file, tmp_path / "v.npy", prompt_name="passage")
    with pytest.raises(UserError, match="no texts in it"):
        encode_file(model, write(tmp_path / "none.jsonl", []), tmp_path / "v.npy")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_chunk_is_limited_by_its_texts_and_by_its_characters(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "CHUNK_BATCHES", 5)
    monkeypatch.setattr(encoding, "CHUNK_CHARACTERS", 1000)
    texts = ["a" * (i % 130) for i in range(500)]
    chunks = list(encoding.chunks(texts, 2, workers))
    assert [text for chunk in chunks for text in chunk] == texts
    for chunk in chunks[:-1]:
        before = sum(map(len, chunk[:-1]))
        assert len(chunk) <= 10 * workers
        assert before < 1000 * workers
        assert len(chunk) == 10 * workers or before + len(chunk[-1]) >= 1000 * workers


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    class Fake(torch.nn.Module):
        def encode(self, texts: list[str], **_: Any) -> Any:
            return np.ones((len(texts), 8), dtype=np.float32)

        encode_query = encode_document = encode

    def peak(rows: int) -> int:
        file = write(tmp_path / f"{rows}.jsonl", ["word " * 200] * rows)
        tracemalloc.start()
        encode_file(Fake(), file, tmp_path / "v.npy")  # type: ignore[arg-type]
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(600)  # imports and caches count here and not below
    assert peak(40_000) < 1.1 * peak(18_000)  # both files have several chunks
